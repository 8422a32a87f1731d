/** The definition of a matrix product, for tests: sums in float64, one rounding to the type of the operands. */

import type { FloatArray, Gemm, GemmOptions, Matrix } from "../../src/linalg/matrix.js";

export const loopGemm: Gemm = async <T extends FloatArray>(
  a: Matrix<T>,
  b: Matrix<T>,
  options: GemmOptions = {},
): Promise<Matrix<T>> => {
  const [rows, inner] = options.transposeA === true ? [a.cols, a.rows] : [a.rows, a.cols];
  const [innerB, cols] = options.transposeB === true ? [b.cols, b.rows] : [b.rows, b.cols];
  if (inner !== innerB) throw new Error(`cannot multiply [${rows},${inner}] by [${innerB},${cols}]`);
  const [rowStep, innerStep] = options.transposeA === true ? [1, a.cols] : [a.cols, 1];
  const [innerStepB, colStep] = options.transposeB === true ? [1, b.cols] : [b.cols, 1];
  const data = (a.data instanceof Float32Array ? new Float32Array(rows * cols) : new Float64Array(rows * cols)) as T;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      let sum = 0;
      for (let k = 0; k < inner; k++) {
        sum += (a.data[i * rowStep + k * innerStep] ?? 0) * (b.data[k * innerStepB + j * colStep] ?? 0);
      }
      data[i * cols + j] = sum;
    }
  }
  return { rows, cols, data };
};
