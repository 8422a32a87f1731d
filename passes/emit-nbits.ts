/**
 * emit-nbits: writes low-bit projections as `com.microsoft.MatMulNBits`, with the accuracy level spelled out.
 *
 * Purpose: ONNX Runtime fuses DequantizeLinear and MatMul into this operator by itself, but then at accuracy level 4, which
 * quantizes the activations to 8 bits without saying so. Written out, the level is in the file: 1 keeps float32
 * activations, 4 is faster and means 8-bit ones.
 * Layout: codes as [N, K / block, block * bits / 8] bytes, low bits first, signed ones offset by 2^(bits-1); scales
 * [N, K / block]; zero points of asymmetric codes [N, K / block], packed like the codes. Scales and zero points for whole
 * columns are repeated for each block. Codes of 2 and 3 bits are written in 4; of 2 bits in 2 where `codeBits` says so, which
 * ONNX Runtime multiplies fast at level 4 only (level 1 took 14 times the float product, one row by 768 x 3072).
 * Refuses: weights whose input is quantized as well (they run on integers), K that is no multiple of the block, codes of 8
 * bits, which level 1 would make slower than floats, and block sizes the operator does not know.
 *
 *     before   MatMul(x, DequantizeLinear(codes i4[K, N], scales f32[K / 128, N]))
 *     after    MatMulNBits(x, bytes u8[N, K / 128, 64], scales f32[N, K / 128]) {bits = 4, accuracy_level = 1}
 */

import { type Attribute, attr, attrInt, makeNode, type Node } from "../src/ir/graph.js";
import { asBytes, type ByteSource, type Tensor, tensorFromSource, toNumbers } from "../src/ir/tensor.js";
import { elementCount } from "../src/ir/types.js";
import { CodeRoom } from "../src/quant/code-room.js";
import { halvedNibbles, transposedNibbles, unpackCodes } from "../src/quant/packing.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { type LinearSite, sitesOf } from "../src/rewrite/sites.js";

export interface EmitNbitsOptions {
  /** 1: float32 activations. 4: activations quantized to 8 bits inside the operator. */
  readonly accuracyLevel: 1 | 4;
  /** Which projections; all unless given. */
  readonly includes?: (site: LinearSite) => boolean;
  /** Bits a code takes in the operator; 4 unless given. */
  readonly codeBits?: (site: LinearSite) => 2 | 4;
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
      const block = blockSize(site, source, scales);
      const quantizedInput = sites.index.producer.get(site.input)?.op === "DequantizeLinear";
      if (quantizedInput || !/^[iu]4$/.test(codes.dtype) || block === null || site.node.op !== "MatMul") {
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
      const bits = options.codeBits?.(site) ?? 4;
      const zeros = model.graph.initializers.get(source.inputs[2] ?? "") ?? null;
      const inputs = packed({ site, source, codes, scales, zeros, block, bits });
      edit.addInitializers(inputs);
      const attributes = new Map<string, Attribute>([
        ["K", attr.int(site.inFeatures)],
        ["N", attr.int(site.outFeatures)],
        ["bits", attr.int(bits)],
        ["block_size", attr.int(block)],
        ["accuracy_level", attr.int(options.accuracyLevel)],
      ]);
      edit.swapNode(
        site.node,
        makeNode("MatMulNBits", [site.input, ...inputs.keys()], site.node.outputs, attributes, {
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

/** Inputs of a block; null where the operator has no form for such scales. */
function blockSize(site: LinearSite, source: Node, scales: Tensor): number | null {
  const [own, axis] = [attrInt(source, "block_size", 0), attrInt(source, "axis", 1)];
  if (own !== 0) return axis === 0 && BLOCKS.includes(own) && site.inFeatures % own === 0 ? own : null;
  if (axis !== 1 && scales.shape.length > 0) return null;
  return BLOCKS.find((size) => site.inFeatures % size === 0) ?? null;
}

interface LowBitWeight {
  readonly site: LinearSite;
  /** The DequantizeLinear node. */
  readonly source: Node;
  readonly codes: Tensor;
  readonly scales: Tensor;
  readonly zeros: Tensor | null;
  readonly block: number;
  readonly bits: 2 | 4;
}

/** Codes, scales and zero points in the operator's layout, in the order of its inputs, made when they are read. */
function packed({ site, source, codes, scales, zeros, block, bits }: LowBitWeight): Map<string, Tensor> {
  const [k, n] = [site.inFeatures, site.outFeatures];
  const blocks = k / block;
  const signed = codes.dtype === "i4";
  const inBits = (nibbles: Uint8Array): Uint8Array => (bits === 4 ? nibbles : halvedNibbles(nibbles, signed));
  const bytes: ByteSource = {
    read: (offset, length) => inBits(transposedNibbles(codes.bytes(), k, n, signed)).subarray(offset, offset + length),
    lend: (offset, length, use) =>
      codes.lend(0, codes.byteLength, (nibbles) =>
        use(inBits(transposedNibbles(nibbles, k, n, signed, room)).subarray(offset, offset + length)),
      ),
    prefetch: () => codes.prefetch(0, codes.byteLength),
  };
  // What a block of a column has, of values for blocks of columns, for columns, or for all.
  const grouped = attrInt(source, "block_size", 0) !== 0;
  const valueAt = (values: ArrayLike<number>, column: number, at: number): number =>
    values[grouped ? at * n + column : values.length === 1 ? 0 : column] ?? 0;
  const factors = (): Uint8Array => {
    const [values, out] = [toNumbers(scales), new Float32Array(n * blocks)];
    for (let i = 0; i < out.length; i++) out[i] = valueAt(values, Math.floor(i / blocks), i % blocks);
    return asBytes(out);
  };
  const perByte = 8 / bits;
  const zeroWidth = Math.ceil(blocks / perByte);
  const points = (of: Tensor): Uint8Array => {
    const values = unpackCodes(of.bytes(), elementCount(of.shape), 4, signed);
    const out = new Uint8Array(n * zeroWidth);
    for (let column = 0; column < n; column++) {
      for (let at = 0; at < blocks; at++) {
        const to = column * zeroWidth + Math.floor(at / perByte);
        out[to] = (out[to] ?? 0) | (valueAt(values, column, at) << (bits * (at % perByte)));
      }
    }
    return out;
  };
  const lazy = (dtype: "u8" | "f32", shape: readonly number[], make: () => Uint8Array): Tensor =>
    tensorFromSource(dtype, shape, { read: (offset, length) => make().subarray(offset, offset + length) }, 0, "lazy");
  return new Map([
    [`${site.weight}.nbits`, tensorFromSource("u8", [n, blocks, (block * bits) / 8], bytes, 0, "lazy")],
    [`${site.weight}.nbits_scale`, lazy("f32", [n * blocks], factors)],
    ...(zeros === null
      ? []
      : [[`${site.weight}.nbits_zero`, lazy("u8", [n, zeroWidth], () => points(zeros))] as const]),
  ]);
}
