/**
 * Orthonormal Hadamard rotations of any size, applied fast.
 *
 * R = diag(signs) (I x H), H = (H_m x H_2^k) / sqrt(m 2^k): Walsh-Hadamard on the power of two, a small dense factor of
 * order m (12, 20, 28, ...) on the rest. Where no Hadamard matrix of the size is known, R is block diagonal with the
 * largest divisor that has one: exact, but mixing less. H_m need not be symmetric, so direction matters: `forward` is
 * x R on a row vector x, `inverse` is x Rᵀ.
 * All arithmetic is float64, rounded once to the type of the data.
 */

import { InvariantError, invariant } from "../support/errors.js";
import type { Random } from "../support/random.js";
import { hadamardMatrix, type SignMatrix } from "./hadamard-matrix.js";
import { type FloatArray, identity, type Matrix } from "./matrix.js";

export interface HadamardRotation {
  readonly size: number;
  /** Number of equal diagonal blocks; 1 when a Hadamard matrix of the whole size is known. */
  readonly blocks: number;
  /** The dense factor H_m; order 1 for powers of two. */
  readonly factor: SignMatrix;
  /** 2^k. */
  readonly power: number;
  /** [size] of +-1 applied before H, or null. */
  readonly signs: Int8Array | null;
}

export type Direction = "forward" | "inverse";

/** The rotation of a size (at least 1); with `random`, its rows get random signs. */
export function hadamardRotation(size: number, random: Random | null = null): HadamardRotation {
  invariant(Number.isSafeInteger(size) && size >= 1, `rotation of size ${size}`);
  const signs = random === null ? null : Int8Array.from({ length: size }, () => (random.bits() & 1n ? 1 : -1));
  for (let blocks = 1; blocks <= size; blocks++) {
    const found = size % blocks === 0 ? factorise(size / blocks) : null;
    if (found !== null) return { size, blocks, ...found, signs };
  }
  throw new InvariantError("a rotation of order 1 always exists");
}

/** order = m 2^k with the smallest m that has a Hadamard matrix. */
function factorise(order: number): { factor: SignMatrix; power: number } | null {
  let power = 1;
  while (order % (2 * power) === 0) power *= 2;
  for (; power >= 1; power /= 2) {
    const factor = hadamardMatrix(order / power);
    if (factor !== null) return { factor, power };
  }
  return null;
}

/** Rows of data [rows, size]: x -> x R or x Rᵀ, in place. */
export function rotateRows(data: FloatArray, rotation: HadamardRotation, direction: Direction): void {
  const { size } = rotation;
  invariant(data.length % size === 0, `rows of ${size} in ${data.length} numbers`);
  const work = new Workspace(rotation, 1, direction);
  for (let start = 0; start < data.length; start += size) {
    const values = work.values;
    for (let i = 0; i < size; i++) values[i] = data[start + i]!;
    work.transform();
    for (let i = 0; i < size; i++) data[start + i] = work.values[i]!;
  }
}

/** Columns of data [size, cols]: W -> Rᵀ W (`forward`: what x -> x R needs of the next weight) or R W, in place. */
export function rotateColumns(data: FloatArray, cols: number, rotation: HadamardRotation, direction: Direction): void {
  const { size } = rotation;
  invariant(data.length === size * cols, `columns of ${size} in ${data.length} numbers`);
  if (cols === 0) return;
  const width = Math.min(cols, Math.max(1, Math.floor(2 ** 16 / size)));
  const work = new Workspace(rotation, width, direction);
  for (let left = 0; left < cols; left += width) {
    const used = Math.min(width, cols - left);
    for (let i = 0; i < size; i++) {
      const [from, to, values] = [i * cols + left, i * width, work.values];
      for (let j = 0; j < used; j++) values[to + j] = data[from + j]!;
    }
    work.transform();
    for (let i = 0; i < size; i++) {
      const [to, from, values] = [i * cols + left, i * width, work.values];
      for (let j = 0; j < used; j++) data[to + j] = values[from + j]!;
    }
  }
}

/** R as a dense matrix. */
export function rotationMatrix(rotation: HadamardRotation): Matrix {
  const result = identity(rotation.size);
  rotateRows(result.data, rotation, "forward");
  return result;
}

/** Transforms `width` vectors at once, held as values [size, width]. */
class Workspace {
  values: Float64Array;
  readonly #rotation: HadamardRotation;
  readonly #width: number;
  readonly #direction: Direction;
  readonly #positive: readonly (readonly number[])[];
  #spare: Float64Array;

  constructor(rotation: HadamardRotation, width: number, direction: Direction) {
    this.#rotation = rotation;
    this.#width = width;
    this.#direction = direction;
    this.#positive = positiveRows(rotation.factor, direction);
    this.values = new Float64Array(rotation.size * width);
    this.#spare = new Float64Array(rotation.factor.order === 1 ? 0 : this.values.length);
  }

  transform(): void {
    const { blocks, factor, power, signs } = this.#rotation;
    if (this.#direction === "forward" && signs !== null) applySigns(this.values, signs, this.#width);
    const unit = this.#width;
    const span = factor.order * power * unit;
    for (let b = 0; b < blocks; b++) {
      for (let m = 0; m < factor.order; m++) {
        const start = b * span + m * power * unit;
        walshHadamard(this.values, start, start + power * unit, unit);
      }
    }
    if (factor.order > 1) {
      for (let b = 0; b < blocks; b++) denseFactor(this.values, this.#spare, b * span, power * unit, this.#positive);
      [this.values, this.#spare] = [this.#spare, this.values];
    }
    const scale = 1 / Math.sqrt(factor.order * power);
    const values = this.values;
    for (let i = 0; i < values.length; i++) values[i]! *= scale;
    if (this.#direction === "inverse" && signs !== null) applySigns(values, signs, unit);
  }
}

function applySigns(values: Float64Array, signs: Int8Array, width: number): void {
  for (let i = 0; i < signs.length; i++) {
    if (signs[i] === 1) continue;
    for (let k = i * width, end = k + width; k < end; k++) values[k] = -values[k]!;
  }
}

/** Unscaled Walsh-Hadamard of values[start, end) taken as vectors of `unit` numbers; radix 4. */
function walshHadamard(values: Float64Array, start: number, end: number, unit: number): void {
  let h = unit;
  // With an odd number of stages, one of radix 2 comes first.
  let stages = 0;
  for (let length = end - start; length > unit; length /= 2) stages += 1;
  if (stages % 2 === 1) {
    for (let base = start; base < end; base += 2 * h) {
      for (let j = base; j < base + h; j++) {
        const a = values[j]!;
        const b = values[j + h]!;
        values[j] = a + b;
        values[j + h] = a - b;
      }
    }
    h *= 2;
  }
  for (; h < end - start; h *= 4) {
    for (let base = start; base < end; base += 4 * h) {
      for (let j = base; j < base + h; j++) {
        const a = values[j]!;
        const b = values[j + h]!;
        const c = values[j + 2 * h]!;
        const d = values[j + 3 * h]!;
        values[j] = a + b + (c + d);
        values[j + h] = a - b + (c - d);
        values[j + 2 * h] = a + b - (c + d);
        values[j + 3 * h] = a - b - (c - d);
      }
    }
  }
}

/** Numbers of a row handled at a time by `denseFactor`, so that all rows of a slice stay in the first-level cache. */
const SLICE = 128;

/**
 * to[target] = sum_i +-from[i] over rows of `length` numbers, where `positive[target]` lists the rows with a plus: twice
 * their sum minus the sum of all rows, which is half the additions.
 */
function denseFactor(
  from: Float64Array,
  to: Float64Array,
  start: number,
  length: number,
  positive: readonly (readonly number[])[],
): void {
  const order = positive.length;
  const total = new Float64Array(SLICE);
  for (let left = 0; left < length; left += SLICE) {
    const used = Math.min(SLICE, length - left);
    total.fill(0);
    for (let i = 0; i < order; i++) {
      const row = start + i * length + left;
      for (let j = 0; j < used; j++) total[j]! += from[row + j]!;
    }
    for (let target = 0; target < order; target++) {
      const out = start + target * length + left;
      for (let j = 0; j < used; j++) to[out + j] = -total[j]!;
      addTwice(from, to, start + left, length, out, used, positive[target]!);
    }
  }
}

/** For each target, the rows i with a positive entry. */
function positiveRows(factor: SignMatrix, direction: Direction): number[][] {
  const { order, signs } = factor;
  const rows = Array.from({ length: order }, (_, i) => i);
  return rows.map((target) =>
    rows.filter((i) => (direction === "forward" ? signs[i * order + target] : signs[target * order + i]) === 1),
  );
}

/** to[out..] += 2 * the sum of the rows at start + row * length. */
function addTwice(
  from: Float64Array,
  to: Float64Array,
  start: number,
  length: number,
  out: number,
  used: number,
  rows: readonly number[],
): void {
  let k = 0;
  for (; k + 4 <= rows.length; k += 4) {
    const a = start + rows[k]! * length;
    const b = start + rows[k + 1]! * length;
    const c = start + rows[k + 2]! * length;
    const d = start + rows[k + 3]! * length;
    for (let j = 0; j < used; j++) to[out + j]! += 2 * (from[a + j]! + from[b + j]! + (from[c + j]! + from[d + j]!));
  }
  for (; k + 2 <= rows.length; k += 2) {
    const a = start + rows[k]! * length;
    const b = start + rows[k + 1]! * length;
    for (let j = 0; j < used; j++) to[out + j]! += 2 * (from[a + j]! + from[b + j]!);
  }
  if (k < rows.length) {
    const a = start + rows[k]! * length;
    for (let j = 0; j < used; j++) to[out + j]! += 2 * from[a + j]!;
  }
}
