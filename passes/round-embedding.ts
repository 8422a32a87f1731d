/**
 * round-embedding: keeps the embedding table in 8 or 4 bits, one scale a row; rows are dequantized after they are looked up,
 * so the table is never made float. Run it when all projections have their final form.
 *
 * Paper: the head-to-toe quantization of Quamba2 (per-token symmetric embeddings).
 * Algebra: E[t] = s_t q_t; Gather(E, t) = Gather(s, t) Gather(q, t). 4-bit codes lie as bytes, the even channel in the low
 * half, offset by 8, as MatMulNBits has them; standard operators take them apart.
 * Tied weights: where a rounded head holds the codes that the table would get on the head's grid, with one scale a token,
 * the lookup reads the head's codes and the file has one table: i8[D, V] along axis 1, or the bytes of MatMulNBits.
 * Otherwise the table gets codes of its own. Rows of zeros have scale 1; they stay zeros.
 * Refuses: tables with NaN or infinity (exit 5); 4 bits for an odd number of channels, and models without a lookup of token
 * ids, with a remark.
 *
 *     before   Gather(E f32[V, D], ids)
 *     after    Gather(q i8[V, D], ids) -> Cast -> Mul(Gather(s f32[V, 1], ids))
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { attrInt, type Model, makeNode, type Node } from "../src/ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor, tensorFromBytes, toNumbers } from "../src/ir/tensor.js";
import { type Quantized, quantize } from "../src/quant/grid.js";
import { packCodes } from "../src/quant/packing.js";
import { roundToNearest } from "../src/quant/round-nearest.js";
import { parseWeightScheme } from "../src/quant/scheme.js";
import { tokenInput } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { transposedWeight, weightValues } from "../src/rewrite/weights.js";

export interface RoundEmbeddingOptions {
  readonly bits: 4 | 8;
}

/** The lookup of token ids in a float table [V, D]. */
interface Lookup {
  readonly node: Node;
  readonly name: string;
  readonly table: Tensor;
  readonly rows: number;
  readonly channels: number;
}

export const roundEmbedding: Pass<RoundEmbeddingOptions> = definePass({
  name: "round-embedding",
  summary: "keep the embedding table in 8 or 4 bits and dequantize the rows that are looked up",
  exactness: "lossy",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  run(model, { bits }, context) {
    const lookup = findLookup(model);
    const missed = (where: string, message: string): Promise<{ model: Model; changed: number }> => {
      context.report({ kind: "missed", code: "round-embedding/form", where, message });
      return Promise.resolve({ model, changed: 0 });
    };
    if (lookup === null) return missed("model", "no float table is looked up by token ids");
    if (bits === 4 && lookup.channels % 2 !== 0)
      return missed(lookup.name, `${lookup.channels} channels do not fit in bytes two by two`);
    const edit = new GraphEdit(model.graph);
    const builder = new GraphBuilder("mambac.embedding.");
    if (bits === 8) lookUpBytes(builder, lookup, sharedBytes(model, lookup));
    else lookUpHalves(builder, lookup, sharedHalves(model, lookup) ?? ownHalves(builder, lookup));
    edit.removeNode(lookup.node);
    edit.addNodes(builder.nodes);
    edit.addInitializers(builder.initializers);
    return Promise.resolve({ model: { ...model, graph: edit.commit() }, changed: 1 });
  },
});

function findLookup({ graph }: Model): Lookup | null {
  const ids = tokenInput(graph)?.name;
  for (const node of graph.nodes) {
    const [name = "", index] = node.inputs;
    const table = graph.initializers.get(name);
    const [rows, channels] = table?.shape ?? [];
    if (node.op !== "Gather" || node.domain !== "" || index !== ids || attrInt(node, "axis", 0) !== 0) continue;
    if (table?.dtype !== "f32" || table.shape.length !== 2 || rows === undefined || channels === undefined) continue;
    return { node, name, table, rows, channels };
  }
  return null;
}

/** The table on a grid of its own, one scale a row. */
function ownCodes({ name, table }: Lookup, bits: 4 | 8): Quantized {
  const scheme = parseWeightScheme(`i${bits}:in-channel`);
  return roundToNearest({ label: name, shape: table.shape, data: weightValues(table) }, scheme);
}

interface Bytes {
  readonly codes: string;
  readonly scales: string;
}

/** Codes i8[D, V] with scales f32[V] of a head that was rounded to the nearest codes of the table. */
function sharedBytes({ graph }: Model, { table, rows, channels }: Lookup): Bytes | null {
  for (const node of graph.nodes) {
    const [codes = "", scales = ""] = node.inputs;
    const [q, s] = [graph.initializers.get(codes), graph.initializers.get(scales)];
    if (node.op !== "DequantizeLinear" || q?.dtype !== "i8" || s?.dtype !== "f32") continue;
    if (q.shape[0] !== channels || q.shape[1] !== rows || s.shape.length !== 1 || s.shape[0] !== rows) continue;
    if (attrInt(node, "axis", 1) !== 1 || attrInt(node, "block_size", 0) !== 0) continue;
    const expected = quantize(weightValues(transposedWeight(table)), [channels, rows], {
      bits: 8,
      granularity: { kind: "channel", axis: 1 },
      scaleType: "f32",
      scales: Float32Array.from(toNumbers(s)),
      zeroPoints: null,
    });
    if (sameBytes(q.bytes(), packCodes(expected.codes, 8))) return { codes, scales };
  }
  return null;
}

function lookUpBytes(builder: GraphBuilder, lookup: Lookup, shared: Bytes | null): void {
  const [, ids = ""] = lookup.node.inputs;
  const [output = ""] = lookup.node.outputs;
  let codes: string;
  let scales: string;
  if (shared === null) {
    const own = ownCodes(lookup, 8);
    const table = builder.initializer(tensorFromBytes("i8", lookup.table.shape, packCodes(own.codes, 8)), "codes");
    codes = builder.op("Gather", [table, ids], { axis: 0 });
    scales = builder.initializer(f32Tensor([lookup.rows], own.scales), "scales");
  } else {
    codes = builder.op("Transpose", [builder.op("Gather", [shared.codes, ids], { axis: 1 })], { perm: [1, 2, 0] });
    scales = shared.scales;
  }
  const last = builder.initializer(i64Tensor([1], [-1]), "last");
  const scale = builder.op("Unsqueeze", [builder.op("Gather", [scales, ids], { axis: 0 }), last]);
  builder.nodes.push(
    makeNode("Mul", [builder.op("Cast", [codes], { to: 1 }), scale], [output], new Map(), { name: lookup.node.name }),
  );
}

/** Bytes u8[V, blocks, block / 2] of two codes each, and scales f32 of V * blocks elements. */
interface Halves extends Bytes {
  readonly blocks: number;
}

/** The bytes of a MatMulNBits head that was rounded to the nearest codes of the table. */
function sharedHalves({ graph }: Model, { table, rows, channels }: Lookup): Halves | null {
  for (const node of graph.nodes) {
    const [, codes = "", scales = "", ...rest] = node.inputs;
    const [q, s] = [graph.initializers.get(codes), graph.initializers.get(scales)];
    if (node.op !== "MatMulNBits" || q === undefined || s?.dtype !== "f32" || rest.some((name) => name !== ""))
      continue;
    if (attrInt(node, "N", 0) !== rows || attrInt(node, "K", 0) !== channels || attrInt(node, "bits", 4) !== 4)
      continue;
    const size = attrInt(node, "block_size", 0);
    if (size === 0 || channels % size !== 0) continue;
    const expected = quantize(weightValues(table), [rows, channels], {
      bits: 4,
      granularity: { kind: "group", axis: 1, size },
      scaleType: "f32",
      scales: Float32Array.from(toNumbers(s)),
      zeroPoints: null,
    });
    if (sameBytes(q.bytes(), halves(expected))) return { codes, scales, blocks: channels / size };
  }
  return null;
}

function ownHalves(builder: GraphBuilder, lookup: Lookup): Halves {
  const own = ownCodes(lookup, 4);
  const shape = [lookup.rows, 1, lookup.channels / 2];
  return {
    codes: builder.initializer(tensorFromBytes("u8", shape, halves(own)), "codes"),
    scales: builder.initializer(f32Tensor([lookup.rows], own.scales), "scales"),
    blocks: 1,
  };
}

/** Two codes a byte, the first in the low half, offset by 8. */
function halves({ codes }: Quantized): Uint8Array {
  return packCodes(
    Uint8Array.from(codes, (code) => code + 8),
    4,
  );
}

function lookUpHalves(builder: GraphBuilder, lookup: Lookup, { codes, scales, blocks }: Halves): void {
  const { rows, channels, node } = lookup;
  const [, ids = ""] = node.inputs;
  const [output = ""] = node.outputs;
  const bytes = builder.op("Gather", [codes, ids], { axis: 0 });
  const byte = (value: number): string => builder.initializer(tensorFromBytes("u8", [], Uint8Array.of(value)), "byte");
  const ints = (...values: number[]): string => builder.initializer(i64Tensor([values.length], values), "sizes");
  const last = ints(-1);
  const low = builder.op("BitwiseAnd", [bytes, byte(15)]);
  const high = builder.op("BitShift", [bytes, byte(4)], { direction: "RIGHT" });
  const pair = builder.op("Concat", [builder.op("Unsqueeze", [low, last]), builder.op("Unsqueeze", [high, last])], {
    axis: -1,
  });
  const grouped = builder.op("Reshape", [pair, ints(0, 0, blocks, channels / blocks)], { allowzero: 0 });
  const offset = builder.initializer(f32Tensor([], [8]), "offset");
  const centred = builder.op("Sub", [builder.op("Cast", [grouped], { to: 1 }), offset]);
  // MatMulNBits has its scales in one row.
  const table = builder.op("Reshape", [scales, ints(rows, blocks, 1)], { allowzero: 0 });
  const scaled = builder.op("Mul", [centred, builder.op("Gather", [table, ids], { axis: 0 })]);
  builder.nodes.push(
    makeNode(
      "Reshape",
      [scaled, ints(0, 0, channels)],
      [output],
      new Map([["allowzero", { kind: "int" as const, value: 0n }]]),
      { name: node.name },
    ),
  );
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((value, at) => value === b[at]);
}
