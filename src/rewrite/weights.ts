/**
 * Weights as expressions: a changed weight is a new tensor that is computed when it is read, from tensors that may stay
 * in their file. Everything is float64 inside with one rounding, and only the largest single weight is ever in memory.
 */

import { asBytes, type ByteSource, type Tensor, tensorFromSource, toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { invariant } from "../support/errors.js";

/** The last computed weight, so that a weight written in slices is computed once. */
let latest: { readonly source: LazyWeight; readonly bytes: Uint8Array } | null = null;

class LazyWeight implements ByteSource {
  readonly #compute: () => Float32Array;
  readonly #reads: Tensor | null;

  constructor(compute: () => Float32Array, reads: Tensor | null) {
    this.#compute = compute;
    this.#reads = reads;
  }

  prefetch(): Promise<void> | null {
    if (latest?.source === this) return null;
    return this.#reads?.prefetch(0, this.#reads.byteLength) ?? null;
  }

  read(offset: number, length: number): Uint8Array {
    if (latest?.source !== this) latest = { source: this, bytes: asBytes(this.#compute()) };
    return latest.bytes.subarray(offset, offset + length);
  }
}

/**
 * A float32 tensor computed on demand; `compute` must give the same values every time. `reads`: the weight it asks
 * `withWeightValues` for.
 */
export function lazyWeight(shape: readonly number[], compute: () => Float32Array, reads: Tensor | null = null): Tensor {
  const source = new LazyWeight(() => {
    const values = compute();
    invariant(
      values.length === elementCount(shape),
      `a computed weight has ${values.length} values, not ${elementCount(shape)}`,
    );
    return values;
  }, reads);
  return tensorFromSource("f32", shape, source, 0, "lazy");
}

/** Values of a weight [K, N], as float32. */
export function weightValues(tensor: Tensor): Float32Array {
  if (tensor.dtype !== "f32") return Float32Array.from(toNumbers(tensor));
  return floatView(tensor.bytes());
}

function floatView(bytes: Uint8Array): Float32Array {
  return bytes.byteOffset % 4 === 0
    ? new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    : new Float32Array(bytes.slice().buffer);
}

/** What `use` makes of the values of a weight, which are in memory only until it returns. */
export function withWeightValues<T>(tensor: Tensor, use: (values: Float32Array) => T): T {
  if (tensor.dtype !== "f32") return use(weightValues(tensor));
  return tensor.lend(0, tensor.byteLength, (bytes) => use(floatView(bytes)));
}

/** diag(rows) W diag(columns) for W [K, N]; null leaves that side alone. */
export function scaledWeight(tensor: Tensor, rows: Float64Array | null, columns: Float64Array | null): Tensor {
  const [k, n] = matrixShape(tensor);
  invariant(
    (rows === null || rows.length === k) && (columns === null || columns.length === n),
    "scaledWeight: sizes differ",
  );
  const scaled = (values: Float32Array): Float32Array => {
    const out = new Float32Array(values.length);
    for (let i = 0; i < k; i++) {
      const row = rows === null ? 1 : (rows[i] ?? 1);
      for (let j = 0; j < n; j++)
        out[i * n + j] = (values[i * n + j] ?? 0) * row * (columns === null ? 1 : (columns[j] ?? 1));
    }
    return out;
  };
  return lazyWeight([k, n], () => withWeightValues(tensor, scaled), tensor);
}

/** The transpose of W [K, N]. */
export function transposedWeight(tensor: Tensor): Tensor {
  const [k, n] = matrixShape(tensor);
  const turned = (values: Float32Array): Float32Array => {
    const out = new Float32Array(values.length);
    for (let i = 0; i < k; i++) for (let j = 0; j < n; j++) out[j * k + i] = values[i * n + j] ?? 0;
    return out;
  };
  return lazyWeight([n, k], () => withWeightValues(tensor, turned), tensor);
}

function matrixShape(tensor: Tensor): [number, number] {
  const [k, n] = tensor.shape;
  invariant(tensor.shape.length === 2 && k !== undefined && n !== undefined, "a weight is not a matrix");
  return [k, n];
}
