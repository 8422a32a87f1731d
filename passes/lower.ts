/**
 * lower: turns the semantic operators into operators a runtime has.
 *
 * Targets: `mambac` (default) emits `com.mambac` nodes, each with a model-local function of standard operators, so the
 * file runs in stock ONNX Runtime and faster where the operator library is registered; `linear-attention` emits ONNX
 * Runtime's own com.microsoft operators, for Mamba-2 with f32 states only. Merged attention becomes standard operators, and so does an online rotation, unless the target
 * is `mambac` and its dense factor has an order of at most 256: then it is `com.mambac.HadamardRotate`.
 * Refuses: `linear-attention` for Mamba-1 or for packed states (exit 4).
 *
 *     before   mambac.ir.SelectiveScan {state_format = h4, state_scale = dsq-max}
 *     after    com.mambac.Mamba2ScanH4Max, and the function of that name
 *     (with requantize = replay: com.mambac.Mamba2ScanH4MaxReplay and its replay_length)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { type Attribute, attr, type FunctionDef, type Graph, type Model, makeNode } from "../src/ir/graph.js";
import { f32Tensor } from "../src/ir/tensor.js";
import { opFunction } from "../src/ops/functions.js";
import { emitLinearAttention } from "../src/ops/linear-attention.js";
import { isPacked, OP_DOMAIN, OP_VERSION, opName, pseudoHeadDim, ROTATION_OP } from "../src/ops/names.js";
import { convNode, type ScanParams, scanNode } from "../src/ops/nodes.js";
import { emitAttention } from "../src/rewrite/attention-lowering.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { isOnlineRotation, lowerRotation } from "../src/rewrite/online-rotation.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import {
  CONV_INPUT,
  type ConvOp,
  readSemantic,
  SCAN_INPUT,
  type ScanOp,
  type SemanticOp,
} from "../src/rewrite/semantic.js";
import { EXIT, MambacError } from "../src/support/errors.js";

export const SCAN_TARGETS = ["mambac", "linear-attention"] as const;
export type ScanTarget = (typeof SCAN_TARGETS)[number];

export const lower: Pass<{ readonly target: ScanTarget }> = definePass({
  name: "lower",
  summary: "turn semantic operators into operators a runtime has",
  exactness: "real-exact",
  requires: ["state-format-set"],
  establishes: ["lowered"],
  invalidates: ["scan-raised", "conv-raised", "attention-raised"],
  run(model, options, _context) {
    const edit = new GraphEdit(model.graph);
    const used = new Set<string>();
    let changed = 0;
    for (const node of model.graph.nodes) {
      const op = readSemantic(node);
      const builder = new GraphBuilder(`mambac.lower${changed}.`);
      if (op !== null) lowerOp(builder, op, options.target, used);
      else if (isOnlineRotation(node)) {
        if (lowerRotation(builder, node, options.target === "mambac")) used.add(ROTATION_OP);
      } else continue;
      edit.removeNode(node);
      edit.addNodes(builder.nodes);
      edit.addInitializers(builder.initializers);
      changed += 1;
    }
    return Promise.resolve({ model: withFunctions(model, edit.commit(), used, options.target), changed });
  },
});

function lowerOp(builder: GraphBuilder, given: SemanticOp, target: ScanTarget, used: Set<string>): void {
  const op = given.kind !== "attention" && given.stateless !== undefined ? withZeroState(builder, given) : given;
  switch (op.kind) {
    case "scan":
      if (target === "linear-attention") lowerToLinearAttention(builder, op);
      else lowerScan(builder, op, used);
      break;
    case "conv":
      lowerConv(builder, op, target, used);
      break;
    default:
      emitAttention(builder, op);
  }
}

/** The operator with zeros as the state before its first token, and a name for the state that nothing reads. */
function withZeroState<Op extends ScanOp | ConvOp>(builder: GraphBuilder, op: Op): Op {
  const { node } = op;
  const sizes =
    op.kind === "conv"
      ? [op.channels, op.stateWidth]
      : op.family === "mamba1"
        ? [op.heads, op.dState]
        : [op.heads, op.headDim, op.dState];
  const batch = builder.op("Shape", [node.inputs[0] ?? ""], { start: 0, end: 1 });
  const shape = builder.op("Concat", [batch, builder.ints(sizes)], { axis: 0 });
  const zeros = builder.op("ConstantOfShape", [shape], { value: attr.tensor(f32Tensor([1], [0])) });
  const at = op.kind === "conv" ? CONV_INPUT.past : SCAN_INPUT.past;
  const inputs = node.inputs.with(at, zeros);
  const present = (node.outputs[1] ?? "") === "" ? builder.fresh("present") : (node.outputs[1] ?? "");
  return { ...op, stateLayout: "PN", node: { ...node, inputs, outputs: [node.outputs[0] ?? "", present] } };
}

function lowerScan(builder: GraphBuilder, op: ScanOp, used: Set<string>): void {
  used.add(opName({ family: op.family, ...op.state }));
  const { dState, groups, dtMin, dtMax } = op;
  const common = { dState, groups, dtMin, dtMax, ...op.state };
  const params: ScanParams =
    op.family === "mamba2"
      ? { ...common, family: "mamba2", heads: op.heads, headDim: op.headDim }
      : { ...common, family: "mamba1", channels: op.heads, headDim: pseudoHeadDim(op.heads) };
  const transpose = op.stateLayout === "NP" && !isPacked(op.state.format) && op.family === "mamba2";
  const [past, present] = [op.node.inputs[7] ?? "", op.node.outputs[1] ?? ""];
  const state = transpose ? builder.op("Transpose", [past], { perm: [0, 1, 3, 2] }) : past;
  const fresh = transpose ? builder.fresh("present") : present;
  const inputs = [...op.node.inputs.slice(0, 7), state, ...op.node.inputs.slice(8)];
  builder.nodes.push(scanNode(params, inputs, [op.node.outputs[0] ?? "", fresh], `${op.layer}.scan`));
  if (transpose) builder.op("Transpose", [fresh], { perm: [0, 1, 3, 2] }, present);
}

function lowerConv(builder: GraphBuilder, op: ConvOp, target: ScanTarget, used: Set<string>): void {
  if (target === "linear-attention" && op.stateWidth === op.kernelSize - 1) {
    const attributes = new Map<string, Attribute>([["activation", attr.string(op.activation)]]);
    builder.nodes.push(
      makeNode("CausalConvWithState", op.node.inputs, op.node.outputs, attributes, {
        domain: "com.microsoft",
        name: `${op.layer}.conv`,
      }),
    );
    return;
  }
  if (target === "linear-attention") {
    // The operator keeps K - 1 columns; the public state is wider, so the extra leading columns are carried beside it.
    const extra = op.stateWidth - (op.kernelSize - 1);
    const [x, weight, bias, past] = op.node.inputs;
    const narrow = builder.op("Slice", [
      past ?? "",
      builder.ints([extra]),
      builder.ints([op.stateWidth]),
      builder.ints([2]),
    ]);
    const attributes = new Map<string, Attribute>([["activation", attr.string(op.activation)]]);
    builder.nodes.push(
      makeNode(
        "CausalConvWithState",
        [x ?? "", weight ?? "", bias ?? "", narrow],
        [op.node.outputs[0] ?? "", builder.fresh("narrow")],
        attributes,
        {
          domain: "com.microsoft",
          name: `${op.layer}.conv`,
        },
      ),
    );
    const stream = builder.op("Concat", [past ?? "", x ?? ""], { axis: 2 });
    const end = builder.ints([Number.MAX_SAFE_INTEGER]);
    builder.op("Slice", [stream, builder.ints([-op.stateWidth]), end, builder.ints([2])], {}, op.node.outputs[1] ?? "");
    return;
  }
  const { rows, ...params } = op;
  const node = convNode(
    rows === null ? params : { ...params, rows },
    op.node.inputs,
    op.node.outputs,
    `${op.layer}.conv`,
  );
  used.add(node.op);
  builder.nodes.push(node);
}

function lowerToLinearAttention(builder: GraphBuilder, op: ScanOp): void {
  if (op.family === "mamba1" || op.state.format !== "f32") {
    throw new MambacError(
      "lower/linear-attention",
      op.family === "mamba1"
        ? `${op.layer} is Mamba-1: LinearAttention would need its decay for every channel and state in memory; use --scan mambac`
        : `LinearAttention has no ${op.state.format} state: use --state f32, or --scan mambac`,
      EXIT.unsupported,
    );
  }
  emitLinearAttention(builder, {
    inputs: op.node.inputs,
    outputs: op.node.outputs,
    heads: op.heads,
    headDim: op.headDim,
    dState: op.dState,
    groups: op.groups,
    dtMin: op.dtMin,
    dtMax: op.dtMax,
    stateLayout: op.stateLayout,
  });
}

function withFunctions(model: Model, graph: Graph, used: ReadonlySet<string>, target: ScanTarget): Model {
  const opsets = new Map(model.opsets);
  const functions: FunctionDef[] = [...model.functions, ...[...used].sort().map((name) => opFunction(name))];
  if (used.size > 0) opsets.set(OP_DOMAIN, OP_VERSION);
  if (target === "linear-attention") opsets.set("com.microsoft", 1);
  return { ...model, graph, opsets, functions };
}
