/**
 * emit-nbits: writes low-bit projections as `com.microsoft.MatMulNBits`, with the accuracy level spelled out.
 *
 * Purpose: ONNX Runtime fuses DequantizeLinear and MatMul into this operator by itself, but then at accuracy level 4, which
 * quantizes the activations to 8 bits without saying so. Written out, the level is in the file: 1 keeps float32
 * activations, 4 is faster and means 8-bit ones.
 * Layout: codes as [N, K / block, block * bits / 8] bytes, low bits first, offset by 2^(bits-1); scales [N, K / block].
 * Scales for whole columns are repeated for each block.
 * Refuses: weights whose input is quantized as well (they run on integers), K that is no multiple of the block, asymmetric
 * codes, and block sizes the operator does not know.
 *
 *     before   MatMul(x, DequantizeLinear(codes i4[K, N], scales f32[K / 128, N]))
 *     after    MatMulNBits(x, bytes u8[N, K / 128, 64], scales f32[N, K / 128]) {bits = 4, accuracy_level = 1}
 */

import { type Attribute, attr, attrInt, makeNode, type Node } from "../src/ir/graph.js";
import { asBytes, type ByteSource, type Tensor, tensorFromSource, toNumbers } from "../src/ir/tensor.js";
import { CodeRoom } from "../src/quant/code-room.js";
import { transposedNibbles } from "../src/quant/packing.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { type LinearSite, sitesOf } from "../src/rewrite/sites.js";

export interface EmitNbitsOptions {
  /** 1: float32 activations. 4: activations quantized to 8 bits inside the operator. */
  readonly accuracyLevel: 1 | 4;
  /** Which projections; all unless given. */
  readonly includes?: (site: LinearSite) => boolean;
}

/** Memory for codes that are only lent. */
const room = new CodeRoom();

const BLOCKS = [256, 128, 64, 32, 16];

export const emitNbits: Pass<EmitNbitsOptions> = definePass({
  name: "emit-nbits",
  summary: "write low-bit projections as MatMulNBits with their accuracy level",
  exactness: "real-exact",
  requires: ["weights-rounded"],
  establishes: [],
  invalidates: [],
  run(model, options, context) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const site of sites.linears) {
      if (options.includes?.(site) === false) continue;
      const source = sites.index.producer.get(site.weight);
      const codes = model.graph.initializers.get(source?.inputs[0] ?? "");
      const scales = model.graph.initializers.get(source?.inputs[1] ?? "");
      if (source?.op !== "DequantizeLinear" || codes === undefined || scales === undefined) continue;
      const block = blockSize(site, source);
      const quantizedInput = sites.index.producer.get(site.input)?.op === "DequantizeLinear";
      if (quantizedInput || codes.dtype !== "i4" || block === null || site.node.op !== "MatMul") {
        context.report({
          kind: "missed",
          code: "emit-nbits/form",
          where: `${site.layer} ${site.role}`,
          message: quantizedInput
            ? "it multiplies integers already"
            : `${codes.dtype}[${codes.shape.join(",")}] has no form in MatMulNBits`,
        });
        continue;
      }
      const names = [`${site.weight}.nbits`, `${site.weight}.nbits_scale`];
      edit.addInitializers(packed(names, site, source, codes, scales, block));
      const attributes = new Map<string, Attribute>([
        ["K", attr.int(site.inFeatures)],
        ["N", attr.int(site.outFeatures)],
        ["bits", attr.int(4)],
        ["block_size", attr.int(block)],
        ["accuracy_level", attr.int(options.accuracyLevel)],
      ]);
      edit.swapNode(
        site.node,
        makeNode("MatMulNBits", [site.input, ...names], site.node.outputs, attributes, {
          domain: "com.microsoft",
          name: site.node.name,
        }),
      );
      changed += 1;
    }
    if (changed === 0) return Promise.resolve({ model, changed });
    return Promise.resolve({
      model: { ...model, opsets: new Map([...model.opsets, ["com.microsoft", 1]]), graph: edit.commit() },
      changed,
    });
  },
});

function blockSize(site: LinearSite, source: Node): number | null {
  const own = attrInt(source, "block_size", 0);
  if (own !== 0) return BLOCKS.includes(own) && site.inFeatures % own === 0 ? own : null;
  return BLOCKS.find((size) => site.inFeatures % size === 0) ?? null;
}

/** Codes and scales in the operator's layout, made when they are read. */
function packed(
  [codesName = "", scalesName = ""]: readonly string[],
  site: LinearSite,
  source: Node,
  codes: Tensor,
  scales: Tensor,
  block: number,
): Map<string, Tensor> {
  const [k, n] = [site.inFeatures, site.outFeatures];
  const blocks = k / block;
  const bytes: ByteSource = {
    read: (offset, length) => transposedNibbles(codes.bytes(), k, n).subarray(offset, offset + length),
    lend: (offset, length, use) =>
      codes.lend(0, codes.byteLength, (packed) =>
        use(transposedNibbles(packed, k, n, room).subarray(offset, offset + length)),
      ),
    prefetch: () => codes.prefetch(0, codes.byteLength),
  };
  const own = attrInt(source, "block_size", 0);
  const factors = (): Uint8Array => {
    const values = toNumbers(scales);
    const out = new Float32Array(n * blocks);
    for (let column = 0; column < n; column++) {
      for (let at = 0; at < blocks; at++) {
        out[column * blocks + at] =
          (own === 0 ? values[values.length === 1 ? 0 : column] : values[at * n + column]) ?? 0;
      }
    }
    return asBytes(out);
  };
  const read = (offset: number, length: number): Uint8Array => factors().subarray(offset, offset + length);
  return new Map([
    [codesName, tensorFromSource("u8", [n, blocks, block / 2], bytes, 0, "lazy")],
    [scalesName, tensorFromSource("f32", [n * blocks], { read }, 0, "lazy")],
  ]);
}
