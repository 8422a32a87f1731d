/**
 * Statistics as bytes: a JSON line that says what follows, padded to 8 bytes, then float64 arrays, little endian. Equal
 * statistics give equal bytes.
 */

import type { Gemm } from "../linalg/matrix.js";
import { assertNever, EXIT, MambacError } from "../support/errors.js";
import { HistogramObserver, MeanAbsObserver, MomentObserver, type Observer, RangeObserver } from "./observers.js";

interface Header {
  readonly kind: Observer["kind"];
  readonly width: number;
  readonly count: number;
  /** Lengths of the arrays, in order. */
  readonly lengths: readonly number[];
}

/** An observer as bytes. */
export function encodeStatistic(observer: Observer): Uint8Array {
  const arrays = arraysOf(observer);
  const header: Header = {
    kind: observer.kind,
    width: observer.width,
    count: observer.kind === "range" ? 0 : observer.count,
    lengths: arrays.map((array) => array.length),
  };
  const text = new TextEncoder().encode(`${JSON.stringify(header)}\n`);
  const start = Math.ceil(text.length / 8) * 8;
  const bytes = new Uint8Array(start + 8 * header.lengths.reduce((sum, length) => sum + length, 0)).fill(32, 0, start);
  bytes.set(text);
  let at = start;
  for (const array of arrays) {
    bytes.set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength), at);
    at += array.byteLength;
  }
  return bytes;
}

function arraysOf(observer: Observer): Float64Array[] {
  switch (observer.kind) {
    case "range":
      return [observer.low, observer.high];
    case "meanabs":
      return [observer.sums];
    case "percentile": {
      const channels = Array.from({ length: observer.width }, (_, c) =>
        Float64Array.from([...observer.bins(c)].flat()),
      );
      return [observer.peaks, ...channels];
    }
    case "second-moment":
      return [observer.mean, upperTriangle(observer.centred.data, observer.width)];
    default:
      return assertNever(observer);
  }
}

/**
 * The observer that was encoded; second moments need `gemm` to go on observing. Throws `calibration/damaged` (exit code 5)
 * when the bytes are not an encoded statistic.
 */
export function decodeStatistic(bytes: Uint8Array, gemm: Gemm): Observer {
  const end = bytes.indexOf(10);
  const header = end < 0 ? null : parseHeader(new TextDecoder().decode(bytes.subarray(0, end)));
  const start = Math.ceil((end + 1) / 8) * 8;
  const size = header === null ? -1 : 8 * header.lengths.reduce((sum, length) => sum + length, 0);
  if (header === null || bytes.length !== start + size) throw damaged();
  const body = new Float64Array(bytes.slice(start).buffer);
  const arrays: Float64Array[] = [];
  let at = 0;
  for (const length of header.lengths) arrays.push(body.subarray(at, (at += length)));
  return restore(header, arrays, gemm);
}

function restore({ kind, width, count }: Header, arrays: readonly Float64Array[], gemm: Gemm): Observer {
  const [first = new Float64Array(), second = new Float64Array()] = arrays;
  const fits = (...lengths: readonly number[]): void => {
    if (lengths.length !== arrays.length || lengths.some((length, i) => arrays[i]?.length !== length)) throw damaged();
  };
  switch (kind) {
    case "range": {
      fits(width, width);
      const observer = new RangeObserver(width);
      observer.low.set(first);
      observer.high.set(second);
      return observer;
    }
    case "meanabs": {
      fits(width);
      const observer = new MeanAbsObserver(width);
      observer.sums.set(first);
      observer.count = count;
      return observer;
    }
    case "percentile": {
      if (first.length !== width || arrays.length !== width + 1) throw damaged();
      const observer = new HistogramObserver(width);
      arrays.slice(1).forEach((flat, c) => observer.restore(c, pairs(flat), first[c]!));
      observer.count = count;
      return observer;
    }
    case "second-moment": {
      fits(width, (width * (width + 1)) / 2);
      const observer = new MomentObserver(width, gemm);
      observer.mean.set(first);
      observer.count = count;
      let at = 0;
      for (let i = 0; i < width; i++) {
        for (let j = i; j < width; j++) observer.centred.data[i * width + j] = second[at++]!;
      }
      return observer;
    }
    default:
      return assertNever(kind);
  }
}

const KINDS: readonly string[] = ["range", "meanabs", "percentile", "second-moment"] satisfies Observer["kind"][];

function parseHeader(text: string): Header | null {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    return null;
  }
  return isHeader(parsed) ? parsed : null;
}

function isHeader(value: unknown): value is Header {
  if (typeof value !== "object" || value === null) return false;
  const { kind, width, count, lengths } = value as Record<string, unknown>;
  const isCount = (x: unknown): boolean => typeof x === "number" && Number.isSafeInteger(x) && x >= 0;
  return (
    typeof kind === "string" &&
    KINDS.includes(kind) &&
    isCount(width) &&
    isCount(count) &&
    Array.isArray(lengths) &&
    lengths.every(isCount)
  );
}

function damaged(): MambacError {
  return new MambacError(
    "calibration/damaged",
    "a stored statistic is cut short or not a statistic; calibrate again",
    EXIT.calibration,
  );
}

function* pairs(flat: Float64Array): Generator<readonly [number, number]> {
  for (let i = 0; i + 1 < flat.length; i += 2) yield [flat[i]!, flat[i + 1]!];
}

function upperTriangle(data: Float64Array, size: number): Float64Array {
  const packed = new Float64Array((size * (size + 1)) / 2);
  let at = 0;
  for (let i = 0; i < size; i++) {
    packed.set(data.subarray(i * size + i, (i + 1) * size), at);
    at += size - i;
  }
  return packed;
}
