/**
 * The inner loop of GPTQ: errors of rows already rounded, taken out of the rows below them, for a strip of columns. Plain
 * and with vector instructions; the operations and their order are the same, so the bits are too.
 */

import {
  advance,
  assembleLoops,
  type Code,
  constant,
  f64x2,
  get,
  load,
  loadSplat64,
  repeat,
  set,
  store,
} from "../linalg/wasm.js";

/** Most rows of a block, and columns of a strip: a strip and its factors stay in the second-level cache. */
export const BLOCK_ROWS = 128;
export const STRIP_COLUMNS = 128;

/** Rows of errors that the faster loop takes at a time. */
export const TOGETHER = 8;

/** A strip of columns of one block. */
export interface BlockLoops {
  /** [BLOCK_ROWS, STRIP_COLUMNS]: rows of the weight, of errors once they are rounded. */
  readonly rows: Float64Array;
  /** [BLOCK_ROWS, BLOCK_ROWS]: the diagonal block of the factor. */
  readonly factors: Float64Array;
  /** rows[j] -= factors[i, j] rows[i], i = first .. first + count - 1 in turn, for j = from .. to - 1. Count is 1 or TOGETHER. */
  readonly spread: (first: number, count: number, from: number, to: number) => void;
}

export function plainBlockLoops(): BlockLoops {
  const rows = new Float64Array(BLOCK_ROWS * STRIP_COLUMNS);
  const factors = new Float64Array(BLOCK_ROWS * BLOCK_ROWS);
  return {
    rows,
    factors,
    spread(first, count, from, to) {
      for (let j = from; j < to; j++) {
        const target = j * STRIP_COLUMNS;
        for (let i = first; i < first + count; i++) {
          const factor = factors[i * BLOCK_ROWS + j]!;
          const source = i * STRIP_COLUMNS;
          for (let c = 0; c < STRIP_COLUMNS; c++) rows[target + c]! -= factor * rows[source + c]!;
        }
      }
    },
  };
}

const ROW_BYTES = 8 * STRIP_COLUMNS;
const FACTOR_BYTES = 8 * BLOCK_ROWS;
const FACTORS_AT = BLOCK_ROWS * ROW_BYTES;
const PAGES = Math.ceil((FACTORS_AT + BLOCK_ROWS * FACTOR_BYTES) / 65536);

/** spread(target, rows, source, factor): addresses of the first of each, and the number of target rows. */
function spreadBody(count: number): Code {
  const [target, rows, source, factor, turns, from, to, splats] = [0, 1, 2, 3, 4, 5, 6, 7];
  const sources = Array.from({ length: count }, (_, i) => i);
  const lanes = (offset: number): Code =>
    store(
      get(to),
      offset,
      sources.reduce<Code>(
        (rest, i) => f64x2.sub(rest, f64x2.mul(get(splats + i), load(get(from), i * ROW_BYTES + offset))),
        load(get(to), offset),
      ),
    );
  return repeat(rows, [
    ...sources.flatMap((i) => set(splats + i, loadSplat64(get(factor), i * FACTOR_BYTES))),
    ...set(turns, constant(STRIP_COLUMNS / 4)),
    ...set(from, get(source)),
    ...set(to, get(target)),
    ...repeat(turns, [...lanes(0), ...lanes(16), ...advance(from, constant(32)), ...advance(to, constant(32))]),
    ...advance(target, constant(ROW_BYTES)),
    ...advance(factor, constant(8)),
  ]);
}

/** Loops in WebAssembly; null where there are no vectors. */
export function vectorBlockLoops(): BlockLoops | null {
  const loops = assembleLoops(
    PAGES,
    [1, TOGETHER].map((count) => ({
      name: `spread${count}`,
      parameters: ["i32", "i32", "i32", "i32"],
      locals: ["i32", "i32", "i32", ...Array.from({ length: count }, () => "v128" as const)],
      body: spreadBody(count),
    })),
  );
  if (loops === null) return null;
  return {
    rows: new Float64Array(loops.memory, 0, BLOCK_ROWS * STRIP_COLUMNS),
    factors: new Float64Array(loops.memory, FACTORS_AT, BLOCK_ROWS * BLOCK_ROWS),
    spread(first, count, from, to) {
      if (from >= to) return;
      const factor = FACTORS_AT + first * FACTOR_BYTES + 8 * from;
      loops.call(`spread${count}`, from * ROW_BYTES, to - from, first * ROW_BYTES, factor);
    },
  };
}
