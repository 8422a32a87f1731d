/**
 * GPTQ: rounds the inputs of a linear layer one after the other and lets those not yet rounded make up for the error, so
 * that || X W - X W^ ||^2 stays small.
 * Source: E. Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers" (2022).
 *
 * The weight is ONNX [K, N], so row k belongs to input k, output columns are independent of each other, and all the work
 * is done for a slice of columns at a time: memory is two slices in float64, the codes, and the factor [K, K].
 */

import { type Gemm, type Matrix, subtractBlock, zeros } from "../linalg/matrix.js";
import { invariant } from "../support/errors.js";
import { dampedFactor, deadInputs, descendingDiagonal } from "./gptq-factor.js";
import { chooseGrid, codeOf, type Quantized } from "./grid.js";
import { codeRange, type Weight } from "./ranges.js";
import { matrixScaleIndex } from "./scale-layout.js";
import type { WeightScheme } from "./scheme.js";

export interface GptqOptions {
  /** Added to the diagonal of H, as a share of its mean. */
  readonly damping?: number;
  /** Inputs rounded before the rest is updated; made smaller where groups would straddle blocks. */
  readonly blockSize?: number;
  /** Round inputs of large H_kk first. Groups then keep their members and take their scales from the original weight. */
  readonly actOrder?: boolean;
  /** What becomes of weights whose input was zero in every sample. */
  readonly deadInputs?: "zero" | "nearest";
}

export interface GptqResult {
  readonly quantized: Quantized;
  /** The damping that made H positive definite. */
  readonly damping: number;
  /** Number of inputs that were zero in every sample. */
  readonly deadInputs: number;
}

/** Numbers in a slice of columns. */
const SLICE_NUMBERS = 1 << 22;

/** Columns rounded together, so that a block of inputs stays in the cache. */
const STRIP = 256;

/**
 * Rounds a weight [K, N] given H [K, K], any positive multiple of the sum of x xᵀ over calibration inputs x; only its
 * upper triangle is read. Throws `gptq/no-samples` (H is zero: calibration never reached this layer), `gptq/not-finite`,
 * `gptq/singular` (H is not positive definite even at 0.1 damping), all with exit code 5, and `quant/not-finite`.
 */
export async function gptq(
  weight: Weight,
  hessian: Matrix,
  scheme: WeightScheme,
  gemm: Gemm,
  options: GptqOptions = {},
): Promise<GptqResult> {
  const [inputs = 0] = weight.shape;
  invariant(weight.shape.length === 2, `GPTQ rounds matrices; ${weight.label} is [${weight.shape.join(",")}]`);
  invariant(hessian.rows === inputs && hessian.cols === inputs, `${weight.label}: H is for ${hessian.rows} inputs`);
  const dead = deadInputs(weight.label, hessian);
  const order = options.actOrder === true ? descendingDiagonal(hessian) : null;
  const { factor, damping } = await dampedFactor(weight.label, hessian, dead, order, gemm, options.damping ?? 0.01);
  const used = options.deadInputs === "nearest" ? weight : withoutRows(weight, dead);
  const quantized = await new Rounding(used, scheme, factor, order, options.blockSize ?? 128, gemm).run();
  return { quantized, damping, deadInputs: dead.reduce((sum, flag) => sum + flag, 0) };
}

/** The weight with the flagged rows set to zero. */
function withoutRows(weight: Weight, flags: Uint8Array): Weight {
  if (!flags.includes(1)) return weight;
  const data = weight.data.slice();
  const cols = data.length / flags.length;
  flags.forEach((flag, k) => {
    if (flag === 1) data.fill(0, k * cols, (k + 1) * cols);
  });
  return { ...weight, data };
}

/** The rounding of one weight. Positions are places in the order of rounding, inputs are rows of the weight. */
class Rounding {
  readonly #weight: Weight;
  readonly #scheme: WeightScheme;
  readonly #factor: Matrix;
  readonly #order: Int32Array | null;
  readonly #gemm: Gemm;
  readonly #inputs: number;
  readonly #outputs: number;
  /** Size of the groups whose scales follow the updated weight; null when all scales are known beforehand. */
  readonly #group: number | null;
  readonly #blockSize: number;
  readonly #scales: Float32Array;
  readonly #zeroPoints: Uint8Array | null;
  readonly #scaleIndex: { readonly row: Int32Array; readonly column: Int32Array };
  readonly #codes: Int8Array;
  readonly #limits: readonly [number, number];

  constructor(
    weight: Weight,
    scheme: WeightScheme,
    factor: Matrix,
    order: Int32Array | null,
    blockSize: number,
    gemm: Gemm,
  ) {
    const [inputs = 0, outputs = 0] = weight.shape;
    const { granularity } = scheme;
    const grid = chooseGrid(weight, scheme);
    this.#weight = weight;
    this.#scheme = scheme;
    this.#factor = factor;
    this.#order = order;
    this.#gemm = gemm;
    this.#inputs = inputs;
    this.#outputs = outputs;
    this.#group = order === null && granularity.kind === "group" && granularity.axis === 0 ? granularity.size : null;
    this.#blockSize = alignedBlock(blockSize, this.#group);
    this.#scales = grid.scales;
    this.#zeroPoints = grid.zeroPoints;
    this.#scaleIndex = matrixScaleIndex(inputs, outputs, granularity);
    this.#codes = new Int8Array(inputs * outputs);
    this.#limits = codeRange(scheme.bits, scheme.zero.kind);
  }

  async run(): Promise<Quantized> {
    const width = Math.max(STRIP, Math.floor(SLICE_NUMBERS / Math.max(this.#inputs, 1)));
    for (let left = 0; left < this.#outputs; left += width) {
      await this.#roundSlice(left, Math.min(left + width, this.#outputs));
    }
    return {
      bits: this.#scheme.bits,
      granularity: this.#scheme.granularity,
      scaleType: this.#scheme.scaleType,
      shape: this.#weight.shape,
      scales: this.#scales,
      zeroPoints: this.#zeroPoints,
      codes: this.#zeroPoints === null ? this.#codes : new Uint8Array(this.#codes.buffer),
    };
  }

  #inputAt(position: number): number {
    return this.#order === null ? position : this.#order[position]!;
  }

  /** Columns [left, right), all inputs. */
  async #roundSlice(left: number, right: number): Promise<void> {
    const work = zeros(this.#inputs, right - left);
    for (let position = 0; position < this.#inputs; position++) {
      const row = this.#inputAt(position) * this.#outputs;
      work.data.set(this.#weight.data.subarray(row + left, row + right), position * work.cols);
    }
    for (let start = 0; start < this.#inputs; start += this.#blockSize) {
      const end = Math.min(start + this.#blockSize, this.#inputs);
      const errors = zeros(end - start, work.cols);
      for (let strip = 0; strip < work.cols; strip += STRIP) {
        this.#roundBlock(work, errors, start, end, left, strip, Math.min(strip + STRIP, work.cols));
      }
      if (end === this.#inputs) break;
      const update = await this.#gemm(this.#factorRows(start, end), errors, { transposeA: true });
      subtractBlock(work, end, 0, update);
    }
  }

  /** U[start..end, end..]. */
  #factorRows(start: number, end: number): Matrix {
    const size = this.#inputs;
    const rows = zeros(end - start, size - end);
    for (let i = start; i < end; i++) {
      rows.data.set(this.#factor.data.subarray(i * size + end, (i + 1) * size), (i - start) * rows.cols);
    }
    return rows;
  }

  /** Positions [start, end), columns [from, to) of the slice; spreads each error over the rest of the block. */
  #roundBlock(work: Matrix, errors: Matrix, start: number, end: number, left: number, from: number, to: number): void {
    const { cols, data } = work;
    const size = this.#inputs;
    for (let i = start; i < end; i++) {
      if (this.#group !== null && i % this.#group === 0) this.#chooseGroup(work, i, this.#group, left, from, to);
      this.#roundRow(work, errors, i, i - start, left, from, to);
      const shift = (i - start) * cols;
      for (let j = i + 1; j < end; j++) {
        const factor = this.#factor.data[i * size + j]!;
        if (factor === 0) continue;
        const row = j * cols;
        for (let c = from; c < to; c++) data[row + c]! -= factor * errors.data[shift + c]!;
      }
    }
  }

  #roundRow(work: Matrix, errors: Matrix, i: number, slot: number, left: number, from: number, to: number): void {
    const [scales, zeroPoints, codes, column] = [this.#scales, this.#zeroPoints, this.#codes, this.#scaleIndex.column];
    const [lowest, highest] = this.#limits;
    const input = this.#inputAt(i);
    const scaleRow = this.#scaleIndex.row[input]!;
    const target = input * this.#outputs + left;
    const inverse = 1 / this.#factor.data[i * (this.#inputs + 1)]!;
    for (let c = from; c < to; c++) {
      const at = scaleRow + column[left + c]!;
      const scale = scales[at]!;
      const zero = zeroPoints === null ? 0 : zeroPoints[at]!;
      const value = work.data[i * work.cols + c]!;
      const code = codeOf(value, scale, zero, lowest, highest);
      codes[target + c] = code;
      errors.data[slot * work.cols + c] = (value - Math.fround((code - zero) * scale)) * inverse;
    }
  }

  /** Scales of the group that starts at position i, from the weight as it is now. */
  #chooseGroup(work: Matrix, i: number, group: number, left: number, from: number, to: number): void {
    const [size, width] = [Math.min(group, this.#inputs - i), to - from];
    const data = new Float32Array(size * width);
    for (let k = 0; k < size; k++) {
      const row = (i + k) * work.cols;
      data.set(work.data.subarray(row + from, row + to), k * width);
    }
    const granularity = { kind: "channel", axis: 1 } as const;
    const grid = chooseGrid(
      { label: this.#weight.label, shape: [size, width], data },
      { ...this.#scheme, granularity },
    );
    const at = this.#scaleIndex.row[i]! + left + from;
    this.#scales.set(grid.scales, at);
    if (grid.zeroPoints !== null) this.#zeroPoints?.set(grid.zeroPoints, at);
  }
}

/** The largest block size up to `wanted` that ends where a group ends, or divides a group. */
function alignedBlock(wanted: number, group: number | null): number {
  invariant(wanted >= 1, `a block of ${wanted} inputs`);
  if (group === null) return wanted;
  if (group <= wanted) return Math.floor(wanted / group) * group;
  let size = wanted;
  while (group % size !== 0) size -= 1;
  return size;
}
