/**
 * Which scale an element uses. Every granularity cuts a row-major tensor into runs of neighbours that either share one
 * scale or take one scale after the other, so two loops serve all of them.
 */

import { elementCount } from "../ir/types.js";
import { assertNever, MambacError } from "../support/errors.js";
import type { Granularity } from "./scheme.js";

export interface ScaleLayout {
  /** Shape of the scales as DequantizeLinear wants them: [] for a tensor, [A] for channels, blocked for groups. */
  readonly shape: readonly number[];
  /** Number of scales. */
  readonly count: number;
  /** Calls `visit` for each run, in memory order: its first element, length, first scale, and 1 or 0 scales an element. */
  forEachRun(visit: (start: number, length: number, scale: number, step: 0 | 1) => void): void;
}

/** The layout of a tensor. Throws `scheme/axis` or `scheme/group` when the tensor has no such axis or group. */
export function scaleLayout(shape: readonly number[], granularity: Granularity): ScaleLayout {
  switch (granularity.kind) {
    case "tensor":
      return { shape: [], count: 1, forEachRun: (visit) => visit(0, elementCount(shape), 0, 0) };
    case "channel":
      return channelLayout(sides(shape, granularity.axis));
    case "group":
      return groupLayout(shape, granularity.axis, granularity.size);
    default:
      return assertNever(granularity);
  }
}

interface Sides {
  readonly outer: number;
  readonly length: number;
  readonly inner: number;
}

function sides(shape: readonly number[], axis: number): Sides {
  const length = shape[axis];
  if (length === undefined) {
    throw new MambacError("scheme/axis", `a tensor [${shape.join(",")}] has no axis ${axis} to put scales along`);
  }
  return { outer: elementCount(shape.slice(0, axis)), length, inner: elementCount(shape.slice(axis + 1)) };
}

function channelLayout({ outer, length, inner }: Sides): ScaleLayout {
  return {
    shape: [length],
    count: length,
    forEachRun(visit) {
      for (let o = 0; o < outer; o++) {
        if (inner === 1) visit(o * length, length, 0, 1);
        else for (let a = 0; a < length; a++) visit((o * length + a) * inner, inner, a, 0);
      }
    },
  };
}

function groupLayout(shape: readonly number[], axis: number, size: number): ScaleLayout {
  const { outer, length, inner } = sides(shape, axis);
  if (!Number.isSafeInteger(size) || size < 1) throw new MambacError("scheme/group", `a group of ${size} elements`);
  const groups = Math.ceil(length / size);
  return {
    shape: shape.map((dim, a) => (a === axis ? groups : dim)),
    count: outer * groups * inner,
    forEachRun(visit) {
      for (let o = 0; o < outer; o++) {
        if (inner === 1) {
          for (let g = 0; g < groups; g++) {
            visit(o * length + g * size, Math.min(size, length - g * size), o * groups + g, 0);
          }
        } else {
          for (let a = 0; a < length; a++) {
            visit((o * length + a) * inner, inner, (o * groups + Math.floor(a / size)) * inner, 1);
          }
        }
      }
    },
  };
}

/** For a matrix, the scale of element (i, j) is `row[i] + column[j]`. */
export function matrixScaleIndex(
  rows: number,
  cols: number,
  granularity: Granularity,
): { readonly row: Int32Array; readonly column: Int32Array } {
  const [row, column] = [new Int32Array(rows), new Int32Array(cols)];
  switch (granularity.kind) {
    case "tensor":
      break;
    case "channel":
      if (granularity.axis === 0) row.forEach((_, i) => (row[i] = i));
      else column.forEach((_, j) => (column[j] = j));
      break;
    case "group": {
      const { size, axis } = granularity;
      const perRow = axis === 0 ? cols : Math.ceil(cols / size);
      for (let i = 0; i < rows; i++) row[i] = perRow * (axis === 0 ? Math.floor(i / size) : i);
      for (let j = 0; j < cols; j++) column[j] = axis === 0 ? j : Math.floor(j / size);
      break;
    }
    default:
      assertNever(granularity);
  }
  return { row, column };
}
