/** Packing and turning of 4-bit codes with vector instructions; the same bytes as without. */

import {
  add,
  advance,
  assembleLoops,
  bytes16,
  type Code,
  constant,
  get,
  load,
  repeat,
  set,
  shuffle,
  store,
  storeHalf,
  type WasmFunction,
} from "../linalg/wasm.js";

export interface NibbleLoops {
  /** Packs two codes to a byte, the first in the low bits, and says how many bytes it made: all but a few at the end. */
  readonly pack: (codes: Uint8Array, packed: Uint8Array) => number;
  /**
   * Rows of packed bytes [2 depth, width] -> packed bytes of the transpose [2 width, depth], each changed in the bits of
   * `offset`. False, and nothing done, for sizes that only the plain loop takes.
   */
  readonly turn: (packed: Uint8Array, depth: number, width: number, offset: number, out: Uint8Array) => boolean;
}

/** Bytes of each side of a strip: what is turned at a time, and stays in the second-level cache. */
const STRIP = 1 << 19;
const PAGES = (2 * STRIP) / 65536;
/** Packed bytes, and pairs of rows, of one turn of the loop. */
const ACROSS = 16;
const DOWN = 8;

/** pack(turns): 32 codes from the first half of the memory to 16 bytes in the second. */
function packFunction(): WasmFunction {
  const [turns, from, to] = [0, 1, 2];
  const every = (first: number): Code =>
    shuffle(
      load(get(from), 0),
      load(get(from), 16),
      Array.from({ length: 16 }, (_, at) => 2 * at + first),
    );
  const body = [
    ...set(to, constant(STRIP)),
    ...repeat(turns, [
      ...store(
        get(to),
        0,
        bytes16.or(bytes16.and(every(0), bytes16.splat(constant(15))), bytes16.shiftLeft(every(1), constant(4))),
      ),
      ...advance(from, constant(32)),
      ...advance(to, constant(16)),
    ]),
  ];
  return { name: "pack", parameters: ["i32"], locals: ["i32", "i32"], body };
}

/** Lanes of two vectors in turns, `size` bytes each, of their lower (0) or upper (1) halves. */
function interleaved(size: number, half: 0 | 1): number[] {
  return Array.from({ length: 16 }, (_, at) => {
    const [lane, byte] = [Math.floor(at / size), at % size];
    return (lane % 2) * 16 + 8 * half + Math.floor(lane / 2) * size + byte;
  });
}

/**
 * turn(across, down, width, depth, block, offset): strips of [2 * 8 down, 16 across] bytes, rows `width` apart, from the first half of
 * the memory to rows `depth` apart in the second, of which `block` bytes are 32. Sixteen bytes of eight pairs of rows at a time: pairs become bytes of two
 * columns each, which three rounds of interleaving put one after the other.
 */
function turnFunction(): WasmFunction {
  const [across, down, width, depth, block, offset] = [0, 1, 2, 3, 4, 5];
  const [left, from, to, column, row, out] = [6, 7, 8, 9, 10, 11];
  const [upper, lower] = [12, 13];
  const made = (kind: number, at: number): number => 14 + 8 * kind + at;
  const [even, odd, first, second] = [0, 1, 2, 3];
  const result = made(4, 0);
  const mask = (bits: number): Code => bytes16.splat(constant(bits));
  const moved = (value: Code): Code => bytes16.xor(value, bytes16.splat(get(offset)));
  const pairs = Array.from(
    { length: DOWN },
    (_, pair): Code => [
      ...set(upper, load(get(row), 0)),
      ...advance(row, get(width)),
      ...set(lower, load(get(row), 0)),
      ...advance(row, get(width)),
      ...set(
        made(even, pair),
        moved(bytes16.or(bytes16.and(get(upper), mask(15)), bytes16.shiftLeft(get(lower), constant(4)))),
      ),
      ...set(
        made(odd, pair),
        moved(bytes16.or(bytes16.shiftRight(get(upper), constant(4)), bytes16.and(get(lower), mask(0xf0)))),
      ),
    ],
  ).flat();
  /** The eight vectors of one kind, as sixteen rows of eight bytes, every other row of the output from `start` on. */
  const turned = (kind: number, start: Code): Code => [
    ...[0, 1, 2, 3].flatMap((pair) =>
      ([0, 1] as const).flatMap((half) =>
        set(
          made(first, 2 * pair + half),
          shuffle(get(made(kind, 2 * pair)), get(made(kind, 2 * pair + 1)), interleaved(1, half)),
        ),
      ),
    ),
    // Rows 0 to 3 and 4 to 7 of each quarter of the columns.
    ...[0, 1].flatMap((four) =>
      [0, 1, 2, 3].flatMap((quarter) =>
        set(
          made(second, 4 * four + quarter),
          shuffle(
            get(made(first, 4 * four + (quarter >> 1))),
            get(made(first, 4 * four + 2 + (quarter >> 1))),
            interleaved(2, quarter % 2 === 0 ? 0 : 1),
          ),
        ),
      ),
    ),
    ...set(out, start),
    ...[0, 1, 2, 3].flatMap((quarter) =>
      ([0, 1] as const).flatMap((half) => [
        ...set(result, shuffle(get(made(second, quarter)), get(made(second, 4 + quarter)), interleaved(4, half))),
        ...([0, 1] as const).flatMap((which) => [
          ...storeHalf(get(out), 0, get(result), which),
          ...advance(out, get(depth)),
          ...advance(out, get(depth)),
        ]),
      ]),
    ),
  ];
  const body = [
    ...set(to, constant(STRIP)),
    ...repeat(across, [
      ...set(left, get(down)),
      ...set(row, get(from)),
      ...set(column, get(to)),
      ...repeat(left, [
        ...pairs,
        ...turned(even, get(column)),
        ...turned(odd, add(get(column), get(depth))),
        ...advance(column, constant(DOWN)),
      ]),
      ...advance(from, constant(ACROSS)),
      ...advance(to, get(block)),
    ]),
  ];
  return {
    name: "turn",
    parameters: ["i32", "i32", "i32", "i32", "i32", "i32"],
    locals: [
      ...Array.from({ length: 6 }, () => "i32" as const),
      ...Array.from({ length: 2 + 33 }, () => "v128" as const),
    ],
    body,
  };
}

/** Loops in WebAssembly; null where there are no vectors. */
export function vectorNibbles(): NibbleLoops | null {
  const loops = assembleLoops(PAGES, [packFunction(), turnFunction()]);
  if (loops === null) return null;
  const { memory, call } = loops;
  const [input, output] = [new Uint8Array(memory, 0, STRIP), new Uint8Array(memory, STRIP, STRIP)];
  return {
    pack(codes, packed) {
      const whole = codes.length - (codes.length % 32);
      for (let at = 0; at < whole; at += STRIP) {
        const count = Math.min(STRIP, whole - at);
        input.set(codes.subarray(at, at + count));
        call("pack", count / 32);
        packed.set(output.subarray(0, count / 2), at / 2);
      }
      return whole / 2;
    },
    turn(packed, depth, width, offset, out) {
      // As many columns as fit with all their rows.
      const strip = Math.floor(STRIP / (2 * depth) / ACROSS) * ACROSS;
      if (depth % DOWN !== 0 || strip === 0) return false;
      for (let left = 0; left < width; left += strip) {
        const columns = Math.min(strip, width - left);
        const across = Math.ceil(columns / ACROSS);
        const apart = across * ACROSS;
        // Behind the last columns lies whatever was there: it is turned with the rest and left behind.
        for (let row = 0; row < 2 * depth; row++) {
          const start = row * width + left;
          input.set(packed.subarray(start, start + columns), row * apart);
        }
        call("turn", across, depth / DOWN, apart, depth, 32 * depth, offset);
        out.set(output.subarray(0, 2 * columns * depth), 2 * left * depth);
      }
      return true;
    },
  };
}

let chosen: NibbleLoops | null | undefined;

/** The loops of this host; null where it has no vector instructions. */
export function nibbleLoops(): NibbleLoops | null {
  if (chosen === undefined) chosen = vectorNibbles();
  return chosen;
}
