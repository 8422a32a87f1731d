/** Matrix products as one-node ONNX graphs in ONNX Runtime. */

import { GraphBuilder, typed } from "../ir/builder.js";
import { type Model, makeModel } from "../ir/graph.js";
import { asBytes, type Tensor, tensorFromBytes } from "../ir/tensor.js";
import type { FloatArray, Gemm, GemmOptions, Matrix } from "../linalg/matrix.js";
import { encodeModel } from "../onnx/write.js";
import { invariant } from "../support/errors.js";
import { openSession, type Session } from "./session.js";

export interface OrtGemm extends AsyncDisposable {
  readonly gemm: Gemm;
}

/**
 * A `Gemm` for float32 and float64 that keeps one session for each combination of type and transposes it has met.
 * Results depend on the machine's instruction set in their last bits, and on nothing else. Dispose of it when done.
 */
export function openOrtGemm(options: { readonly threads?: number } = {}): OrtGemm {
  const sessions = new Map<string, Promise<Session>>();

  function sessionFor(dtype: "f32" | "f64", layout: GemmOptions): Promise<Session> {
    const key = `${dtype} ${layout.transposeA === true} ${layout.transposeB === true}`;
    let session = sessions.get(key);
    if (session === undefined) {
      session = openSession(encodeModel(gemmModel(dtype, layout)), { threads: options.threads ?? 1 });
      sessions.set(key, session);
    }
    return session;
  }

  async function gemm<T extends FloatArray>(a: Matrix<T>, b: Matrix<T>, layout: GemmOptions = {}): Promise<Matrix<T>> {
    const [rows, inner] = layout.transposeA === true ? [a.cols, a.rows] : [a.rows, a.cols];
    const [innerB, cols] = layout.transposeB === true ? [b.cols, b.rows] : [b.rows, b.cols];
    invariant(inner === innerB, `product of [${rows},${inner}] and [${innerB},${cols}]`);
    const dtype = a.data instanceof Float32Array ? "f32" : "f64";
    if (rows * cols * inner === 0)
      return { rows, cols, data: floats<T>(dtype, new ArrayBuffer(rows * cols * WIDTH[dtype])) };
    const session = await sessionFor(dtype, layout);
    const feeds = new Map([
      ["a", toTensor(dtype, a)],
      ["b", toTensor(dtype, b)],
    ]);
    const y = (await session.run(feeds)).get("y");
    invariant(y !== undefined, "the product has no output");
    const bytes = y.bytes();
    return { rows, cols, data: floats<T>(dtype, bytes.buffer, bytes.byteOffset, rows * cols) };
  }

  return {
    gemm,
    async [Symbol.asyncDispose]() {
      const open = await Promise.all(sessions.values());
      sessions.clear();
      await Promise.all(open.map((session) => session.release()));
    },
  };
}

const WIDTH = { f32: 4, f64: 8 } as const;

function floats<T extends FloatArray>(
  dtype: "f32" | "f64",
  buffer: ArrayBufferLike,
  offset: number = 0,
  length?: number,
): T {
  const array: FloatArray =
    dtype === "f32" ? new Float32Array(buffer, offset, length) : new Float64Array(buffer, offset, length);
  return array as T;
}

function toTensor(dtype: "f32" | "f64", matrix: Matrix<FloatArray>): Tensor {
  return tensorFromBytes(dtype, [matrix.rows, matrix.cols], asBytes(matrix.data));
}

function gemmModel(dtype: "f32" | "f64", layout: GemmOptions): Model {
  const builder = new GraphBuilder("");
  const attributes = { transA: layout.transposeA === true ? 1 : 0, transB: layout.transposeB === true ? 1 : 0 };
  builder.op("Gemm", ["a", "b"], attributes, "y");
  return makeModel(
    builder.graph(
      "gemm",
      [typed("a", dtype, [null, null]), typed("b", dtype, [null, null])],
      [typed("y", dtype, [null, null])],
    ),
  );
}
