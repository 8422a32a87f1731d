/**
 * quantize-state: chooses how every scan keeps its state between calls.
 *
 * Purpose: the recurrent state is most of what a Mamba server holds per sequence; at 4 bits it is an eighth.
 * Paper: Q-Mamba, decoupled scale quantization (one scale a channel, one a state index, their product the step).
 * Algebra: q[p,n] = round(h[p,n] / (Sc_p Ss_n / qmax)), Sc_p = sqrt(mean_n |h|) (`dsq`) or max_n |h| (`dsq-max`),
 * Ss_n = max_p |h| / Sc_p; y is read from the state before rounding.
 * Requantize: `call` rounds once at the end of a call (every token while decoding), `token` after each token in it,
 * `replay` once in `replayLength` tokens wherever calls end: the state is then what was rounded last and the tokens since,
 * u_j = d_j x_j, l_j = d_j A and B_j, from which h = exp(l_0 + ..) h_0 + sum_j exp(l_(j+1) + ..) u_j B_j. Mamba-2 with h8 or
 * h4 only; other layers keep `call`, with a remark.
 * Scale `static`: Sc and Ss are frozen, from the mean magnitude of every state value over calibration data, and become
 * inputs of the operator; the state is codes alone. Mamba-2 only; other layers get `dsq-max`, with a remark.
 * Scans that carry no state have none to store: they keep f32.
 * Refuses: h4 where d_state is odd, since two codes share a byte; a replay length outside 1..64; replay of static scales.
 *
 *     before   past_ssm.0: f32[batch, 24, 64, 128]
 *     after    past_ssm.0: u8[batch, 24, 4480]
 *     replay   past_ssm.0: u8[batch, 162368], with R = 16
 *     static   past_ssm.0: u8[batch, 24, 4096]
 */

import { type Graph, type Node, type ValueInfo } from "../src/ir/graph.js";
import { f32Tensor, type Tensor } from "../src/ir/tensor.js";
import { checkedReplayLength, DEFAULT_REPLAY_LENGTH, hasReplay, isPacked, isStatic } from "../src/ops/names.js";
import type { GivenSteps } from "../src/quant/static-steps.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import {
  FLOAT_STATE,
  readSemantic,
  SCAN_INPUT,
  type ScanOp,
  type StateChoice,
  scanNode,
  semanticOps,
} from "../src/rewrite/semantic.js";
import { slotType, stateSlots } from "../src/rewrite/states.js";
import { EXIT, invariant, MambacError } from "../src/support/errors.js";

export interface QuantizeStateOptions extends StateChoice {
  /** Steps of a Mamba-2 scan; needed with static scales. */
  readonly steps?: (op: ScanOp) => GivenSteps;
}

export const quantizeState: Pass<QuantizeStateOptions> = definePass({
  name: "quantize-state",
  summary: "choose the format of the recurrent state: f32, f16, h8 or h4",
  exactness: "lossy",
  requires: ["states-complete"],
  establishes: ["state-format-set"],
  invalidates: [],
  run(model, options, context) {
    const choices = choicesFor(
      semanticOps(model.graph.nodes).flatMap((op) => (op.kind === "scan" && op.stateless === undefined ? [op] : [])),
      options,
      context,
    );
    const edit = new GraphEdit(model.graph);
    const types = new Map<string, ValueInfo>();
    let changed = 0;
    for (const node of model.graph.nodes) {
      const op = readSemantic(node);
      if (op?.kind !== "scan") continue;
      if (op.stateless !== undefined) {
        edit.swapNode(node, scanNode({ ...op, state: FLOAT_STATE }, node.inputs, node.outputs));
        continue;
      }
      if (options.format === "h4" && op.dState % 2 !== 0) {
        throw new MambacError(
          "quantize-state/odd",
          `${op.layer}: a 4-bit state needs an even d_state, this one has ${op.dState}; use --state h8`,
          EXIT.unsupported,
        );
      }
      const next = { ...op, state: choices.get(op.layer) ?? plainChoice(options) };
      const swapped: Node = scanNode(next, inputsOf(next, model.graph, edit, options), node.outputs);
      edit.swapNode(node, swapped);
      for (const slot of stateSlots({ ...next, node: swapped })) {
        for (const name of [node.inputs[slot.input], node.outputs[slot.output]]) {
          if (name !== undefined && name !== "") types.set(name, slotType(slot, batchOf(model.graph, name), name));
        }
      }
      changed += 1;
    }
    const update = (value: ValueInfo): ValueInfo => types.get(value.name) ?? value;
    const graph = edit.commit();
    return Promise.resolve({
      model: { ...model, graph: { ...graph, inputs: graph.inputs.map(update), outputs: graph.outputs.map(update) } },
      changed,
    });
  },
});

function plainChoice({ format, scale, requantize }: StateChoice): StateChoice {
  return { format, scale, requantize };
}

/** Inputs of the scan as `op.state` wants them; adds the steps of static scales to the graph. */
function inputsOf(op: ScanOp, graph: Graph, edit: GraphEdit, { steps }: QuantizeStateOptions): readonly string[] {
  const inputs = op.node.inputs.slice(0, SCAN_INPUT.rowStep);
  if (!isStatic(op.state)) return inputs;
  invariant(steps !== undefined, "quantize-state: static scales need steps");
  const { rows, columns } = steps(op);
  const given = [
    ["row_step", SCAN_INPUT.rowStep, f32Tensor([op.heads, op.headDim], rows)],
    ["column_step", SCAN_INPUT.columnStep, f32Tensor([op.groups, op.dState], columns)],
  ] as const;
  const names = given.map(([what, at, tensor]) => {
    const before = op.node.inputs[at] ?? "";
    const known = graph.initializers.get(before);
    if (known !== undefined && sameTensor(known, tensor)) return before;
    const name = edit.unused(`${op.layer}.${what}`);
    edit.addInitializers(new Map([[name, tensor]]));
    return name;
  });
  return [...inputs, ...names];
}

function sameTensor(a: Tensor, b: Tensor): boolean {
  const bytes = b.bytes();
  return a.dtype === b.dtype && a.byteLength === b.byteLength && a.bytes().every((value, i) => value === bytes[i]);
}

/** The choice of each layer: replay where it can be had, with a remark where it cannot. */
function choicesFor(
  scans: readonly ScanOp[],
  options: StateChoice,
  context: Pick<PassContext, "report">,
): ReadonlyMap<string, StateChoice> {
  const { format, scale } = options;
  if (isStatic(options)) return staticChoices(scans, options, context);
  if (options.requantize !== "replay") return new Map(scans.map(({ layer }) => [layer, plainChoice(options)]));
  const replayLength = checkedReplayLength(options.replayLength ?? DEFAULT_REPLAY_LENGTH);
  const able = scans.filter(({ family }) => hasReplay({ family, format }));
  if (able.length === 0 && scans.length > 0) {
    const code = "quantize-state/no-replay";
    const why = isPacked(format) ? "no layer is Mamba-2" : `a state kept as ${format} has none`;
    const message = `there is no replay here, since ${why}: every state is rounded at the end of a call`;
    context.report({ kind: "warning", code, where: "model", message });
  }
  const choices = new Map<string, StateChoice>();
  for (const { layer, family } of scans) {
    const replays = hasReplay({ family, format });
    choices.set(layer, {
      format,
      scale,
      ...(replays ? { requantize: "replay", replayLength } : { requantize: "call" }),
    });
    if (replays || able.length === 0) continue;
    const message = "a Mamba-1 layer has no replay: its state is rounded at the end of a call";
    context.report({ kind: "missed", code: "quantize-state/no-replay", where: layer, message });
  }
  return choices;
}

/** Static scales where they can be had, `dsq-max` elsewhere. */
function staticChoices(
  scans: readonly ScanOp[],
  options: StateChoice,
  context: Pick<PassContext, "report">,
): ReadonlyMap<string, StateChoice> {
  if (options.requantize === "replay") {
    throw new MambacError(
      "quantize-state/static-replay",
      "a replay state measures its scales once in so many tokens: choose --state-scale dsq-max, or --requantize call with static scales",
    );
  }
  return new Map(
    scans.map(({ layer, family }): [string, StateChoice] => {
      if (family === "mamba2") return [layer, plainChoice(options)];
      const message = "a Mamba-1 layer has no static scales: those of its state are measured, as with dsq-max";
      context.report({ kind: "missed", code: "quantize-state/no-static", where: layer, message });
      return [layer, { ...plainChoice(options), scale: "dsq-max" }];
    }),
  );
}

function batchOf(graph: Graph, name: string): string | number | null {
  const value = [...graph.inputs, ...graph.outputs].find((candidate) => candidate.name === name);
  return value?.type?.kind === "tensor" ? (value.type.shape?.[0] ?? null) : null;
}
