/**
 * fuse-quantize: lets the rotation or gate in front of a projection give the codes that the projection reads.
 *
 * Purpose: a QuantizeLinear behind an operator reads back from memory what the operator has just written, four bytes a value,
 * for one byte a value. Paper: none; Quamba's and Quamba2's kernels (Chiang et al. 2025) round in their epilogue as well.
 * Algebra: none; the operator's function ends in that QuantizeLinear, and its kernels round the same floats the same way. int8
 * codes around 0 become uint8 codes around 128, which stand for the same values: ONNX Runtime 1.30 multiplies int8 codes on
 * x64 only behind a QuantizeLinear that it can turn into uint8 itself.
 * The DequantizeLinear stays, so that ONNX Runtime makes an integer product of it as before.
 * Runs after lowering, and only where operators of mambac are wanted and codes are for ONNX Runtime's CPU provider.
 * Refuses, with a remark: results that something else reads, codes that anything but a DequantizeLinear of the same zero point
 * reads, and grids that are not one constant scale with one 8-bit zero point. Scales measured in the call
 * (DynamicQuantizeLinear) depend on all rows, so no row could be rounded before the last is made: nothing is saved.
 *
 *     before   HadamardRotate(x, factor) -> QuantizeLinear(s, 0: int8) -> DequantizeLinear(s, 0) -> MatMul
 *     after    HadamardRotateQ8(x, factor, s, 128: uint8) -> DequantizeLinear(s, 128) -> MatMul
 *     (and GatedRMSNormQ8, SiluGateQ8, SlopedSiluGateQ8)
 */

import { type Model, type Node, subgraphs, type UseIndex, useIndex } from "../src/ir/graph.js";
import { type Tensor, tensorFromBytes, toNumbers } from "../src/ir/tensor.js";
import { opFunction } from "../src/ops/functions.js";
import { codesOp, OP_DOMAIN } from "../src/ops/names.js";
import { codesNode } from "../src/ops/nodes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";

export const fuseQuantize: Pass<Record<string, never>> = definePass({
  name: "fuse-quantize",
  summary: "let rotations and gates give the codes that a projection reads",
  exactness: "bitwise",
  requires: ["lowered"],
  establishes: [],
  invalidates: [],
  run(model, _options, context) {
    const { graph } = model;
    const index = useIndex(graph);
    const edit = new GraphEdit(graph);
    const shifted = new Map<number, string>();
    let changed = 0;
    for (const node of graph.nodes) {
      if (node.domain !== OP_DOMAIN || codesOp(node.op) === null) continue;
      const found = quantizerOf(index, graph.initializers, node);
      if (found === null) continue;
      if (found.kind === "refused") {
        const { code, message } = found;
        const where = node.name || (node.outputs[0] ?? "");
        context.report({ kind: "missed", code: `fuse-quantize/${code}`, where, message });
        continue;
      }
      const { quantize, readers } = found;
      const [, scale = "", given = ""] = quantize.inputs;
      const zeroPoint = aroundMiddle(edit, graph.initializers, given, shifted);
      edit.removeNode(quantize);
      edit.swapNode(node, codesNode(node, { scale, zeroPoint }, quantize.outputs[0] ?? ""));
      for (const reader of readers) edit.swapNode(reader, { ...reader, inputs: reader.inputs.with(2, zeroPoint) });
      changed += 1;
    }
    return Promise.resolve({
      model: changed === 0 ? model : withFunctions({ ...model, graph: edit.commit() }),
      changed,
    });
  },
});

type Found =
  | { readonly kind: "found"; readonly quantize: Node; readonly readers: readonly Node[] }
  | { readonly kind: "refused"; readonly code: string; readonly message: string };

const refused = (code: string, message: string): Found => ({ kind: "refused", code, message });

/** What rounds the result of a node, and what reads the codes; null where nothing rounds it. */
function quantizerOf(index: UseIndex, constants: ReadonlyMap<string, Tensor>, node: Node): Found | null {
  const [result = ""] = node.outputs;
  const users = index.users.get(result) ?? [];
  const quantize = users.find((user) => isPlain(user, "QuantizeLinear") && user.inputs[0] === result);
  if (quantize === undefined) return null;
  if (users.length > 1 || index.outputs.has(result))
    return refused("other-readers", "its result is read as floats too, so it stays float");
  const [, scale = "", zero = ""] = quantize.inputs;
  const [step, zeroPoint] = [constants.get(scale), constants.get(zero)];
  const isByte = zeroPoint?.dtype === "i8" || zeroPoint?.dtype === "u8";
  if (step?.dtype !== "f32" || !isByte || step.shape.length > 0 || zeroPoint.shape.length > 0)
    return refused("grid", "its result is not rounded with one constant scale to 8 bits, so it stays float");
  const [codes = ""] = quantize.outputs;
  const readers = index.users.get(codes) ?? [];
  const dequantizes = (reader: Node): boolean =>
    isPlain(reader, "DequantizeLinear") && reader.inputs[0] === codes && reader.inputs[2] === zero;
  if (index.outputs.has(codes) || readers.length === 0 || !readers.every(dequantizes))
    return refused("codes-read", "something besides a projection reads its codes, so it stays float");
  return { kind: "found", quantize, readers };
}

function isPlain(node: Node, op: string): boolean {
  return node.op === op && node.domain === "";
}

/** The zero point of the same values as uint8 codes: itself, or 128 more. */
function aroundMiddle(
  edit: GraphEdit,
  constants: ReadonlyMap<string, Tensor>,
  name: string,
  shifted: Map<number, string>,
): string {
  const tensor = constants.get(name);
  const [zero = 0] = tensor === undefined ? [] : toNumbers(tensor);
  if (tensor?.dtype !== "i8") return name;
  const known = shifted.get(zero);
  if (known !== undefined) return known;
  const fresh = edit.unused("mambac.codes.zero_point");
  edit.addInitializers(new Map([[fresh, tensorFromBytes("u8", [], Uint8Array.of(zero + 128))]]));
  shifted.set(zero, fresh);
  return fresh;
}

/** The model with the functions of the operators it has now, of those that can give codes. */
function withFunctions(model: Model): Model {
  const used = new Set<string>();
  const visit = (nodes: readonly Node[]): void => {
    for (const node of nodes) {
      if (node.domain === OP_DOMAIN) used.add(node.op);
      for (const inner of subgraphs(node)) visit(inner.nodes);
    }
  };
  visit(model.graph.nodes);
  const kept = model.functions.filter(
    ({ domain, name }) => domain !== OP_DOMAIN || codesOp(name) === null || used.has(name),
  );
  const known = new Set(kept.map(({ name }) => name));
  const fresh = [...used].filter((name) => !known.has(name)).sort();
  return { ...model, functions: [...kept, ...fresh.map((name) => opFunction(name))] };
}
