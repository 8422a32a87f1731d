/**
 * One operator's kernel against the float64 reference and against the function in the model. Runs in a process of its own
 * for every instruction set, since a process chooses its kernels once; `parity-worker.ts` is that process.
 */

import fc from "fast-check";
import { float16ToNumber, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { isPacked, maxCode, packedHeadBytes, type ScanSpec } from "../../src/ops/names.js";
import { unpackState } from "../../src/ops/packed-state.js";
import { allocate, type Memory, type NativeSession, openNativeSession } from "../../src/run/native-session.js";
import { type ConvSizes } from "../ops/conv-case.js";
import {
  compareCodes,
  randomData,
  referenceScan,
  relativeError,
  type ScanData,
  type ScanSizes,
  scanFeeds,
  scanModel,
} from "../ops/scan-case.js";

/** The worst of many comparisons. */
export interface Worst {
  /** Relative to the largest value expected. */
  y: number;
  /** Float states likewise. */
  state: number;
  codes: number;
  different: number;
  largest: number;
  scaleUlps: number;
}

export function noDifference(): Worst {
  return { y: 0, state: 0, codes: 0, different: 0, largest: 0, scaleUlps: 0 };
}

/** What a call gave or should have given. */
export interface Outcome {
  readonly y: ArrayLike<number>;
  /** Values of a float state, bytes of a packed one. */
  readonly state: ArrayLike<number> | Uint8Array;
}

/** P and N are rarely multiples of a vector's width; N is odd only where the format allows it. */
export function sizesFor(spec: ScanSpec): fc.Arbitrary<ScanSizes> {
  return fc
    .record({
      batch: fc.integer({ min: 1, max: 2 }),
      // More than a chunk's 32 tokens once in a while; rounding at every token goes one by one anyway.
      length: fc.oneof(
        fc.constant(1),
        fc.integer({ min: 2, max: 12 }),
        fc.constant(spec.requantize === "token" ? 9 : 45),
      ),
      perGroup: fc.integer({ min: 1, max: 3 }),
      groups: fc.integer({ min: 1, max: 2 }),
      headDim: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(16, 64)),
      width: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.constantFrom(16, 128)),
      bounded: fc.boolean(),
    })
    .map(({ perGroup, width, bounded, ...rest }) => ({
      ...rest,
      heads: perGroup * rest.groups,
      dState: spec.format === "h4" ? width + (width % 2) : width,
      chunkSize: 64,
      dtMin: bounded ? 0.003 : Number.NEGATIVE_INFINITY,
      dtMax: bounded ? 0.8 : Number.POSITIVE_INFINITY,
    }));
}

type Change = (data: ScanData, sizes: ScanSizes, spec: ScanSpec) => Partial<ScanData>;

const zeroState: Change = ({ past }) => ({
  past: past instanceof Uint8Array ? new Uint8Array(past.length) : new Float32Array(past.length),
});
const scaled =
  (factor: number): Change =>
  (data, sizes, spec) => ({ ...zeroState(data, sizes, spec), x: data.x.map((value) => value * factor) });

/** Inputs of every case: as random models have them, and as no trained model does. */
export const CHANGES: readonly (readonly [string, Change])[] = [
  ["random values", () => ({})],
  ["a zero state", zeroState],
  ["no input at all", (data, sizes, spec) => ({ ...zeroState(data, sizes, spec), x: data.x.map(() => 0) })],
  ["inputs of 1e-8", scaled(1e-8)],
  // A half overflows at 65504.
  ["large inputs", (data, sizes, spec) => scaled(spec.format === "f16" ? 30 : 1e4)(data, sizes, spec)],
  [
    "one outlier",
    (data, sizes, spec) => ({
      ...zeroState(data, sizes, spec),
      x: data.x.map((v, i) => (i === 3 ? (spec.format === "f16" ? 300 : 1e5) : v)),
    }),
  ],
  [
    "columns from 1 to 1e-12",
    (data, sizes, spec) => ({
      ...zeroState(data, sizes, spec),
      B: data.B.map((v, i) => Math.sign(v) * 10 ** (-0.8 * (i % Math.min(16, sizes.dState)))),
    }),
  ],
  ["decay beyond float32", ({ dt, A }) => ({ dt: dt.map(() => 60), A: A.map(() => -1e4) })],
];

/** The reference for one call. Packed states as bytes. */
export function expectedOf(spec: ScanSpec, sizes: ScanSizes, data: ScanData): Outcome {
  const { y, packed, state } = referenceScan(spec, sizes, data);
  return { y, state: packed ?? state };
}

export function outcomeOf(spec: ScanSpec, outputs: ReadonlyMap<string, Tensor>): Outcome {
  const present = tensorOf(outputs, "present");
  return { y: toNumbers(tensorOf(outputs, "y")), state: isPacked(spec.format) ? present.bytes() : toNumbers(present) };
}

export function tensorOf(tensors: ReadonlyMap<string, Tensor>, name: string): Tensor {
  const tensor = tensors.get(name);
  if (tensor === undefined) throw new Error(`there is no ${name}`);
  return tensor;
}

/** Adds one comparison to the worst so far. */
export function note(worst: Worst, spec: ScanSpec, sizes: ScanSizes, actual: Outcome, expected: Outcome): void {
  worst.y = Math.max(worst.y, nanIsInfinite(relativeError(actual.y, expected.y)));
  if (isPacked(spec.format)) {
    const [given, wanted] = [Uint8Array.from(actual.state), Uint8Array.from(expected.state)];
    const { headDim, dState } = sizes;
    if (spec.scale !== "static") settleSubnormal(spec.format, sizes, given, wanted);
    const found = compareCodes(spec.format, headDim, dState, given, wanted, spec.scale);
    worst.codes += found.codes;
    worst.different += found.different;
    worst.largest = Math.max(worst.largest, found.largest);
    worst.scaleUlps = Math.max(worst.scaleUlps, found.scaleUlps);
  } else worst.state = Math.max(worst.state, nanIsInfinite(relativeError(actual.state, expected.state)));
}

/** Halves below this have fewer than eleven bits. */
const SMALLEST_NORMAL = 2 ** -14;
const SUBNORMAL_UNIT = 2 ** -24;

/**
 * A state scale that is a subnormal half is good to a few bits, so one unit of it moves codes by more than one and the value
 * they stand for by next to nothing. Such columns are compared by value, and then made equal.
 */
function settleSubnormal(format: "h8" | "h4", sizes: ScanSizes, given: Uint8Array, wanted: Uint8Array): void {
  const { headDim, dState } = sizes;
  const stride = packedHeadBytes(format, headDim, dState);
  const codeBytes = stride - 2 * (headDim + dState);
  const half = (bytes: Uint8Array, at: number): number =>
    float16ToNumber((bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8));
  const qmax = maxCode(format);
  for (let head = 0; head * stride < wanted.length; head++) {
    const start = head * stride;
    const stateScales = start + codeBytes + 2 * headDim;
    const columns = Array.from({ length: dState }, (_, n) => n).filter(
      (n) => half(wanted, stateScales + 2 * n) < SMALLEST_NORMAL,
    );
    if (columns.length === 0) continue;
    const decoded = [given, wanted].map((bytes) =>
      unpackState(bytes.subarray(start, start + stride), { heads: 1, headDim, dState }, format),
    );
    for (const n of columns) {
      const scale = half(wanted, stateScales + 2 * n);
      for (let p = 0; p < headDim; p++) {
        const channel = half(wanted, start + codeBytes + 2 * p);
        const difference = Math.abs(
          (decoded[0]?.[p * dState + n] ?? Number.NaN) - (decoded[1]?.[p * dState + n] ?? Number.NaN),
        );
        if (!(difference <= channel * (2 * SUBNORMAL_UNIT + (1.01 * scale) / qmax))) {
          throw new Error(`a value of a column with a tiny scale is off by ${difference} at p=${p}, n=${n}`);
        }
        const index = p * dState + n;
        const at = start + (format === "h8" ? index : index >> 1);
        const mask = format === "h8" ? 255 : 15 << (4 * (index & 1));
        given[at] = ((given[at] ?? 0) & ~mask) | ((wanted[at] ?? 0) & mask);
      }
      given.set(wanted.subarray(stateScales + 2 * n, stateScales + 2 * n + 2), stateScales + 2 * n);
    }
  }
}

function nanIsInfinite(value: number): number {
  return Number.isNaN(value) ? Number.POSITIVE_INFINITY : value;
}

export function memoryOf(tensor: Tensor): Memory {
  const bytes = allocate(tensor.byteLength);
  bytes.set(tensor.bytes());
  return { dtype: tensor.dtype, shape: tensor.shape, bytes };
}

/** One call whose past and present are one buffer. */
export function runAliased(
  session: NativeSession,
  feeds: ReadonlyMap<string, Tensor>,
  outputs: ReadonlyMap<string, Tensor>,
): Map<string, Uint8Array> {
  using binding = session.bind();
  const state = memoryOf(tensorOf(feeds, "past"));
  const others = new Map(
    [...outputs].filter(([name]) => name !== "present").map(([name, tensor]) => [name, memoryOf(tensor)]),
  );
  for (const [name, tensor] of feeds) binding.input(name, name === "past" ? state : memoryOf(tensor));
  for (const [name, memory] of others) {
    memory.bytes.fill(0xff);
    binding.output(name, memory);
  }
  binding.output("present", state);
  binding.run();
  return new Map([["present", state.bytes], ...[...others].map(([name, { bytes }]) => [name, bytes] as const)]);
}

/** Where a kernel wrote something else into a shared buffer than into one of its own; null where it did not. */
export function aliasingFault(
  aliased: ReadonlyMap<string, Uint8Array>,
  apart: ReadonlyMap<string, Tensor>,
): string | null {
  for (const [name, bytes] of aliased) {
    if (Buffer.compare(bytes, tensorOf(apart, name).bytes()) !== 0)
      return `${name} differs where past and present are one buffer`;
  }
  return null;
}

/** A session on the kernels, and one on the function, of one scan. */
export async function openBoth(
  model: Uint8Array,
  library: string,
): Promise<{ readonly kernel: NativeSession; readonly body: NativeSession; [Symbol.dispose](): void }> {
  const kernel = await openNativeSession(model, { library });
  const body = await openNativeSession(model);
  return {
    kernel,
    body,
    [Symbol.dispose]() {
      kernel.close();
      body.close();
    },
  };
}

/** The tokens of a case one call each, carrying the kernel's own state from call to call. */
export function tokenFeeds(sizes: ScanSizes, data: ScanData, token: number): { data: ScanData; sizes: ScanSizes } {
  const take = (values: Float32Array): Float32Array => {
    const width = values.length / (sizes.batch * sizes.length);
    const out = new Float32Array(sizes.batch * width);
    for (let b = 0; b < sizes.batch; b++) {
      const from = (b * sizes.length + token) * width;
      out.set(values.subarray(from, from + width), b * width);
    }
    return out;
  };
  const { x, dt, B, C } = data;
  return { data: { ...data, x: take(x), dt: take(dt), B: take(B), C: take(C) }, sizes: { ...sizes, length: 1 } };
}

export const convSizes: fc.Arbitrary<ConvSizes> = fc
  .record({
    batch: fc.integer({ min: 1, max: 3 }),
    channels: fc.integer({ min: 3, max: 150 }),
    length: fc.oneof(fc.constant(1), fc.integer({ min: 2, max: 40 })),
    kernelSize: fc.integer({ min: 1, max: 6 }),
    spare: fc.integer({ min: 0, max: 3 }),
  })
  .map(({ spare, ...rest }) => ({ ...rest, stateWidth: Math.max(1, rest.kernelSize - 1 + spare) }));

export { randomData, scanFeeds, scanModel };
