/** Operators that read or write elements by index. */

import { attrInt, attrString } from "./graph.js";
import { count, gridOffsets, stridedOffsets, stridesOf } from "./infer-content.js";
import {
  at,
  axisIn,
  type Call,
  CONTENT_LIMIT,
  contentInput,
  describe,
  dtypeFact,
  type Rule,
  refuse,
  scalarOf,
  type TensorFact,
  tensorFact,
  tensorInput,
} from "./infer-fact.js";
import { pick } from "./infer-movement.js";
import { type DType, elementCount } from "./types.js";

/** Indices counted from the front. Throws `Contradiction` for one outside [-size, size). */
function frontIndices(indices: readonly number[], size: number): number[] {
  return indices.map((index) => {
    if (index < -size || index >= size) refuse(`index ${index} is outside an axis of ${size}`);
    return index < 0 ? index + size : index;
  });
}

const gather: Rule = (call) => {
  const [x, indices] = [tensorInput(call, 0), tensorInput(call, 1)];
  if (x.shape === null) return [dtypeFact(x.dtype)];
  const from = x.shape;
  const axis = axisIn(attrInt(call.node, "axis", 0), from.length);
  if (indices.shape === null) return [dtypeFact(x.dtype)];
  const shape = [...from.slice(0, axis), ...indices.shape, ...from.slice(axis + 1)];
  if (indices.content === null) return [tensorFact(x.dtype, shape)];
  const chosen = frontIndices(indices.content, at(from, axis));
  const strides = stridesOf(from);
  return [
    pick(x, shape, () =>
      gridOffsets(from.map((dim, a) => (a === axis ? chosen : count(dim, (i) => i)).map((i) => i * at(strides, a)))),
    ),
  ];
};

/** For each element of an index tensor, its place in a data tensor of the same rank. */
function elementOffsets(
  indices: readonly number[],
  shape: readonly number[],
  data: readonly number[],
  axis: number,
): number[] {
  const chosen = frontIndices(indices, at(data, axis));
  const strides = stridesOf(data);
  const others = stridedOffsets(shape, strides.with(axis, 0));
  return others.map((offset, i) => offset + at(chosen, i) * at(strides, axis));
}

const gatherElements: Rule = (call) => {
  const [x, indices] = [tensorInput(call, 0), tensorInput(call, 1)];
  const { content, shape } = indices;
  if (shape === null) return [dtypeFact(x.dtype)];
  if (x.shape !== null) {
    const data = x.shape;
    if (shape.length !== data.length) refuse(`indices ${describe(shape)} for ${describe(data)}`);
    const axis = axisIn(attrInt(call.node, "axis", 0), data.length);
    if (content !== null) return [pick(x, shape, () => elementOffsets(content, shape, data, axis))];
  }
  return [tensorFact(x.dtype, shape)];
};

/** Start of each slice that GatherND and ScatterND address. */
function tupleOffsets(
  indices: readonly number[],
  shape: readonly number[],
  data: readonly number[],
  batch: number,
): number[] {
  const strides = stridesOf(data);
  const width = at(shape, shape.length - 1);
  const tuples = elementCount(shape.slice(0, -1));
  const perBatch = tuples / Math.max(1, elementCount(shape.slice(0, batch)));
  const batches = stridedOffsets(data.slice(0, batch), strides.slice(0, batch));
  return count(tuples, (tuple) => {
    let offset = at(batches, Math.floor(tuple / perBatch));
    for (let i = 0; i < width; i++) {
      const [index = 0] = frontIndices([at(indices, tuple * width + i)], at(data, batch + i));
      offset += index * at(strides, batch + i);
    }
    return offset;
  });
}

const gatherNd: Rule = (call) => {
  const [x, indices] = [tensorInput(call, 0), tensorInput(call, 1)];
  if (x.shape === null || indices.shape === null) return [dtypeFact(x.dtype)];
  const [data, where] = [x.shape, indices.shape];
  const batch = attrInt(call.node, "batch_dims", 0);
  const width = where.at(-1) ?? refuse("gather with a scalar index");
  if (batch >= where.length || batch + width > data.length) refuse(`indices ${describe(where)} for ${describe(data)}`);
  if (where.slice(0, batch).some((dim, axis) => dim !== data[axis])) refuse("batch dimensions differ");
  const rest = data.slice(batch + width);
  const shape = [...where.slice(0, -1), ...rest];
  const { content } = indices;
  if (content === null || elementCount(shape) > CONTENT_LIMIT) return [tensorFact(x.dtype, shape)];
  const inner = stridedOffsets(rest, stridesOf(rest));
  return [pick(x, shape, () => gridOffsets([tupleOffsets(content, where, data, batch), inner]))];
};

/** Data with updates written at `offsets`; unknown unless everything is known and updates replace. */
function written(call: Call, x: TensorFact, offsets: (indices: readonly number[]) => readonly number[]): TensorFact {
  const [indices, updates] = [contentInput(call, 1), contentInput(call, 2)];
  const plain = attrString(call.node, "reduction", "none") === "none";
  if (!plain || x.content === null || indices === null || updates === null) return tensorFact(x.dtype, x.shape);
  const content = [...x.content];
  for (const [i, offset] of offsets(indices).entries()) content[offset] = at(updates, i);
  return tensorFact(x.dtype, x.shape, content);
}

const scatterNd: Rule = (call) => {
  const [x, indices, updates] = [tensorInput(call, 0), tensorInput(call, 1), tensorInput(call, 2)];
  if (x.shape === null || indices.shape === null) return [tensorFact(x.dtype, x.shape)];
  const [data, where] = [x.shape, indices.shape];
  const width = where.at(-1) ?? refuse("scatter with a scalar index");
  if (width > data.length) refuse(`indices ${describe(where)} for ${describe(data)}`);
  const rest = data.slice(width);
  const expected = [...where.slice(0, -1), ...rest];
  if (updates.shape !== null && describe(updates.shape) !== describe(expected)) {
    refuse(`updates ${describe(updates.shape)} where ${describe(expected)} is needed`);
  }
  const inner = (): number[] => stridedOffsets(rest, stridesOf(rest));
  return [written(call, x, (content) => gridOffsets([tupleOffsets(content, where, data, 0), inner()]))];
};

const scatterElements: Rule = (call) => {
  const [x, indices, updates] = [tensorInput(call, 0), tensorInput(call, 1), tensorInput(call, 2)];
  if (x.shape === null || indices.shape === null) return [tensorFact(x.dtype, x.shape)];
  const [data, where] = [x.shape, indices.shape];
  const axis = axisIn(attrInt(call.node, "axis", 0), data.length);
  if (where.length !== data.length) refuse(`indices ${describe(where)} for ${describe(data)}`);
  if (updates.shape !== null && describe(updates.shape) !== describe(where)) {
    refuse(`updates ${describe(updates.shape)} for indices ${describe(where)}`);
  }
  return [written(call, x, (content) => elementOffsets(content, where, data, axis))];
};

const oneHot: Rule = (call) => {
  const [indices, values] = [tensorInput(call, 0), tensorInput(call, 2)];
  const depth = scalarOf(contentInput(call, 1));
  if (indices.shape === null || depth === null) return [dtypeFact(values.dtype)];
  const axis = axisIn(attrInt(call.node, "axis", -1), indices.shape.length + 1);
  const shape = indices.shape.toSpliced(axis, 0, depth);
  const { content } = indices;
  if (content === null || values.content === null || elementCount(shape) > CONTENT_LIMIT) {
    return [tensorFact(values.dtype, shape)];
  }
  const [off = 0, on = 1] = values.content;
  // Each output element compares its index tensor element with its place along the new axis.
  const sources = stridedOffsets(shape, stridesOf(indices.shape).toSpliced(axis, 0, 0));
  const places = stridedOffsets(
    shape,
    shape.map((_, a) => (a === axis ? 1 : 0)),
  );
  const hot = (i: number): boolean => {
    const index = at(content, at(sources, i));
    return (index < 0 ? index + depth : index) === at(places, i);
  };
  return [
    tensorFact(
      values.dtype,
      shape,
      places.map((_, i) => (hot(i) ? on : off)),
    ),
  ];
};

const topK: Rule = (call) => {
  const x = tensorInput(call, 0);
  const k = scalarOf(contentInput(call, 1, call.node.attributes.has("k") ? [attrInt(call.node, "k", 0)] : null));
  if (x.shape === null || k === null) return [dtypeFact(x.dtype), dtypeFact("i64")];
  const axis = axisIn(attrInt(call.node, "axis", -1), x.shape.length);
  if (k > at(x.shape, axis)) refuse(`top ${k} of an axis of ${at(x.shape, axis)}`);
  const shape = x.shape.with(axis, k);
  return [tensorFact(x.dtype, shape), tensorFact("i64", shape)];
};

const nonZero: Rule = (call) => {
  const x = tensorInput(call, 0);
  if (x.content === null || x.shape === null) return [dtypeFact("i64")];
  const { content, shape } = x;
  const hits = content.flatMap((value, i) => (value === 0 ? [] : [i]));
  const strides = stridesOf(shape);
  const rows = shape.map((dim, axis) => hits.map((hit) => Math.floor(hit / at(strides, axis)) % dim));
  return [tensorFact("i64", [shape.length, hits.length], rows.flat())];
};

const compress: Rule = (call) => {
  const x = tensorInput(call, 0);
  const condition = contentInput(call, 1);
  if (x.shape === null || condition === null) return [dtypeFact(x.dtype)];
  const kept = condition.flatMap((flag, i) => (flag === 0 ? [] : [i]));
  const flat = !call.node.attributes.has("axis");
  const from = flat ? [elementCount(x.shape)] : x.shape;
  const axis = flat ? 0 : axisIn(attrInt(call.node, "axis", 0), from.length);
  const chosen = frontIndices(kept, at(from, axis));
  const strides = stridesOf(from);
  const lists = (): number[][] =>
    from.map((dim, a) => (a === axis ? chosen : count(dim, (i) => i)).map((i) => i * at(strides, a)));
  return [pick(x, from.with(axis, chosen.length), () => gridOffsets(lists()))];
};

const trilu: Rule = (call) => {
  const x = tensorInput(call, 0);
  const k = scalarOf(contentInput(call, 1, [0]));
  if (x.shape === null) return [dtypeFact(x.dtype)];
  const columns = x.shape.at(-1);
  const rows = x.shape.at(-2);
  if (rows === undefined || columns === undefined) refuse(`trilu of ${describe(x.shape)}`);
  if (k === null || x.content === null) return [tensorFact(x.dtype, x.shape)];
  const upper = attrInt(call.node, "upper", 1) !== 0;
  const keep = (i: number): boolean => {
    const distance = (i % columns) - (Math.floor(i / columns) % rows);
    return upper ? distance >= k : distance <= k;
  };
  return [
    tensorFact(
      x.dtype,
      x.shape,
      x.content.map((value, i) => (keep(i) ? value : 0)),
    ),
  ];
};

/** Weights stored in blocks of a few bits, gathered by rows and dequantized. */
const gatherBlockQuantized: Rule = (call) => {
  const [data, indices, scales] = [tensorInput(call, 0), tensorInput(call, 1), tensorInput(call, 2)];
  if (data.shape === null || indices.shape === null) return [dtypeFact(scales.dtype)];
  const axis = axisIn(attrInt(call.node, "gather_axis", 0), data.shape.length);
  const shape = [...data.shape];
  const last = shape.length - 1;
  shape[last] = at(shape, last) * packedPerByte(data.dtype, attrInt(call.node, "bits", 4));
  return [tensorFact(scales.dtype, shape.toSpliced(axis, 1, ...indices.shape))];
};

function packedPerByte(dtype: DType | null, bits: number): number {
  return dtype === "u8" ? 8 / bits : 1;
}

/** Every indexing operator by qualified name. */
export const INDEX_RULES: ReadonlyMap<string, Rule> = new Map([
  ["Gather", gather],
  ["GatherElements", gatherElements],
  ["GatherND", gatherNd],
  ["ScatterND", scatterNd],
  ["ScatterElements", scatterElements],
  ["Scatter", scatterElements],
  ["OneHot", oneHot],
  ["TopK", topK],
  ["NonZero", nonZero],
  ["Compress", compress],
  ["Trilu", trilu],
  ["com.microsoft.GatherBlockQuantized", gatherBlockQuantized],
]);
