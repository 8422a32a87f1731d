/**
 * The two loops that rounding spends its time in, plain and with vector instructions. Both give the same bits: division,
 * minimum, maximum and rounding to even are exact operations of IEEE 754, in whatever order they are done here.
 */

import {
  advance,
  assembleLoops,
  type Code,
  constant,
  f32x4,
  float,
  get,
  load,
  repeat,
  set,
  shuffle,
  store,
} from "../linalg/wasm.js";
import type { ScaleLayout } from "./scale-layout.js";

/** Adding and subtracting 1.5 * 2^52 rounds a double of at most 51 bits to the nearest integer, ties to even. */
export const ROUND = 6755399441055744;

/** What codes are made with; `lowest` and `highest` are codes. */
export interface CodeGrid {
  readonly scales: Float32Array;
  /** Null when zero is code 0. */
  readonly zeroPoints: Uint8Array | null;
  readonly lowest: number;
  readonly highest: number;
}

export interface RoundingLoops {
  /** Widens low and high, one a scale, so that they span the data. NaN is handed on. */
  readonly widen: (data: Float32Array, layout: ScaleLayout, low: Float32Array, high: Float32Array) => void;
  /** codes = clamp(round_half_even(x / s) + z), the low eight bits of each; NaN becomes 0. */
  readonly round: (data: Float32Array, layout: ScaleLayout, grid: CodeGrid, codes: Int8Array) => void;
}

export const plainLoops: RoundingLoops = {
  widen: (data, layout, low, high) =>
    layout.forEachRun((start, length, scale, step) => widenRun(data, start, length, low, high, scale, step)),
  round: (data, layout, grid, codes) =>
    layout.forEachRun((start, length, scale, step) => roundRun(data, start, length, grid, scale, step, codes)),
};

function widenRun(
  data: Float32Array,
  start: number,
  length: number,
  low: Float32Array,
  high: Float32Array,
  scale: number,
  step: 0 | 1,
): void {
  if (step === 1) {
    for (let i = 0; i < length; i++) {
      const value = data[start + i]!;
      low[scale + i] = Math.min(low[scale + i]!, value);
      high[scale + i] = Math.max(high[scale + i]!, value);
    }
    return;
  }
  let least = low[scale]!;
  let most = high[scale]!;
  for (let i = start; i < start + length; i++) {
    const value = data[i]!;
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  low[scale] = least;
  high[scale] = most;
}

function roundRun(
  data: Float32Array,
  start: number,
  length: number,
  { scales, zeroPoints, lowest, highest }: CodeGrid,
  scale: number,
  step: 0 | 1,
  codes: Int8Array,
): void {
  for (let i = 0; i < length; i++) {
    const at = scale + step * i;
    const zero = zeroPoints === null ? 0 : zeroPoints[at]!;
    const value = Math.fround(data[start + i]! / scales[at]!);
    const clamped = value < lowest - zero ? lowest - zero : value > highest - zero ? highest - zero : value;
    codes[start + i] = clamped + ROUND - ROUND + zero;
  }
}

/** Numbers the vector loops take at once. Their five arrays of it stay in the second-level cache. */
const CAPACITY = 1 << 14;
/** Runs shorter than this cost more to hand over than to loop through. */
const SHORTEST = 256;
/** Numbers in one turn of a vector loop. */
const TURN = 16;

const AT = { data: 0, first: 4 * CAPACITY, second: 8 * CAPACITY, codes: 12 * CAPACITY } as const;
const PAGES = Math.ceil((13 * CAPACITY) / 65536);

/** widen(turns, stride): low and high from `first` and `second`; a stride of 0 folds all turns into the first sixteen. */
function widenBody(): Code {
  const [turns, stride, data, low, high, x] = [0, 1, 2, 3, 4, 5];
  const quarter = (offset: number): Code => [
    ...set(x, load(get(data), offset)),
    ...store(get(low), offset, f32x4.min(load(get(low), offset), get(x))),
    ...store(get(high), offset, f32x4.max(load(get(high), offset), get(x))),
  ];
  return [
    ...set(data, constant(AT.data)),
    ...set(low, constant(AT.first)),
    ...set(high, constant(AT.second)),
    ...repeat(turns, [
      ...[0, 16, 32, 48].flatMap(quarter),
      ...advance(data, constant(4 * TURN)),
      ...advance(low, get(stride)),
      ...advance(high, get(stride)),
    ]),
  ];
}

/** Adding 1.5 * 2^23 rounds a float32 of at most 22 bits likewise, and leaves the integer in the low bits. */
const ROUND_FLOAT = 12582912;

/** round(turns, stride, lowest, highest): scales in `first`, zero points as float32 in `second`. */
function roundBody(): Code {
  const [turns, stride, lowest, highest, data, scale, zero, codes, z, least, most, round] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
  ];
  const quarter = (offset: number): Code => {
    const ratio = f32x4.div(load(get(data), offset), load(get(scale), offset));
    const above = f32x4.greater(ratio, f32x4.sub(get(least), get(z)));
    const clamped = f32x4.lesser(above, f32x4.sub(get(most), get(z)));
    return [...set(z, load(get(zero), offset)), ...f32x4.add(f32x4.add(clamped, get(round)), get(z))];
  };
  const lowBytes = (a: Code, b: Code): Code => shuffle(a, b, [0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0]);
  const halves = shuffle(
    lowBytes(quarter(0), quarter(16)),
    lowBytes(quarter(32), quarter(48)),
    [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23],
  );
  return [
    ...set(data, constant(AT.data)),
    ...set(scale, constant(AT.first)),
    ...set(zero, constant(AT.second)),
    ...set(codes, constant(AT.codes)),
    ...set(least, f32x4.splat(get(lowest))),
    ...set(most, f32x4.splat(get(highest))),
    ...set(round, f32x4.splat(float(ROUND_FLOAT))),
    ...repeat(turns, [
      ...store(get(codes), 0, halves),
      ...advance(data, constant(4 * TURN)),
      ...advance(codes, constant(TURN)),
      ...advance(scale, get(stride)),
      ...advance(zero, get(stride)),
    ]),
  ];
}

/** Loops in WebAssembly; null where there are no vectors. */
export function vectorLoops(): RoundingLoops | null {
  const loops = assembleLoops(PAGES, [
    { name: "widen", parameters: ["i32", "i32"], locals: ["i32", "i32", "i32", "v128"], body: widenBody() },
    {
      name: "round",
      parameters: ["i32", "i32", "f32", "f32"],
      locals: ["i32", "i32", "i32", "i32", "v128", "v128", "v128", "v128"],
      body: roundBody(),
    },
  ]);
  if (loops === null) return null;
  const { memory, call } = loops;
  const input = new Float32Array(memory, AT.data, CAPACITY);
  const [first, second] = [new Float32Array(memory, AT.first, CAPACITY), new Float32Array(memory, AT.second, CAPACITY)];
  const output = new Int8Array(memory, AT.codes, CAPACITY);
  const turnsOf = (length: number): number => Math.ceil(length / TURN);

  /** Copies numbers in, and zeros behind them up to the end of a turn. */
  function take(data: Float32Array, start: number, length: number): void {
    input.set(data.subarray(start, start + length));
    input.fill(0, length, turnsOf(length) * TURN);
  }

  return {
    widen(data, layout, low, high) {
      // Rows one after the other often share their scales, which then stay where they are.
      let [held, count] = [-1, 0];
      const flush = (): void => {
        low.set(first.subarray(0, count), held);
        high.set(second.subarray(0, count), held);
      };
      inPieces(layout, (start, length, scale, step) => {
        if (length < SHORTEST) {
          if (count > 0) flush();
          count = 0;
          widenRun(data, start, length, low, high, scale, step);
          return;
        }
        if (step === 1) {
          if (held !== scale || count !== length) {
            if (count > 0) flush();
            [held, count] = [scale, length];
            first.set(low.subarray(scale, scale + length));
            second.set(high.subarray(scale, scale + length));
          }
          take(data, start, length);
          call("widen", turnsOf(length), 4 * TURN);
          return;
        }
        if (count > 0) flush();
        count = 0;
        first.fill(low[scale]!, 0, TURN);
        second.fill(high[scale]!, 0, TURN);
        take(data, start, length);
        call("widen", turnsOf(length), 0);
        // Sixteen partial results, one a lane; zeros behind the run widen nothing, as low <= 0 <= high.
        low[scale] = Math.min(...first.subarray(0, TURN));
        high[scale] = Math.max(...second.subarray(0, TURN));
      });
      if (count > 0) flush();
    },
    round(data, layout, grid, codes) {
      const { scales, zeroPoints, lowest, highest } = grid;
      let [held, count] = [-1, 0];
      inPieces(layout, (start, length, scale, step) => {
        if (length < SHORTEST) {
          roundRun(data, start, length, grid, scale, step, codes);
          return;
        }
        const wanted = step === 1 ? length : TURN;
        if (held !== scale || count !== wanted) {
          [held, count] = [scale, wanted];
          const end = turnsOf(wanted) * TURN;
          if (step === 0) {
            first.fill(scales[scale]!, 0, TURN);
            second.fill(zeroPoints === null ? 0 : zeroPoints[scale]!, 0, TURN);
          } else {
            first.set(scales.subarray(scale, scale + length));
            first.fill(1, length, end);
            if (zeroPoints === null) second.fill(0, 0, end);
            else {
              second.set(zeroPoints.subarray(scale, scale + length));
              second.fill(0, length, end);
            }
          }
        }
        take(data, start, length);
        call("round", turnsOf(length), step === 1 ? 4 * TURN : 0, lowest, highest);
        codes.set(output.subarray(0, length), start);
      });
    },
  };
}

/** The runs of a layout, none longer than the vector loops take. */
function inPieces(
  layout: ScaleLayout,
  visit: (start: number, length: number, scale: number, step: 0 | 1) => void,
): void {
  layout.forEachRun((start, length, scale, step) => {
    for (let at = 0; at < length; at += CAPACITY) {
      visit(start + at, Math.min(CAPACITY, length - at), scale + step * at, step);
    }
  });
}

let chosen: RoundingLoops | null = null;

/** The fastest loops that this host has. */
export function roundingLoops(): RoundingLoops {
  chosen ??= vectorLoops() ?? plainLoops;
  return chosen;
}
