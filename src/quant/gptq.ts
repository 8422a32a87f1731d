/**
 * GPTQ: rounds the inputs of a linear layer one after the other and lets those not yet rounded make up for the error, so
 * that || X W - X W^ ||^2 stays small.
 * Source: E. Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers" (2022).
 *
 * The weight is ONNX [K, N], so row k belongs to input k, output columns are independent of each other, and all the work
 * is done for a slice of columns at a time: memory is a slice in float64, the codes, and the factor [K, K]. Before a block of
 * inputs is rounded, one product takes the errors of all inputs before it out of its rows.
 */

import { block, type Gemm, type Matrix, matrixOf, subtractBlock, zeros } from "../linalg/matrix.js";
import { invariant } from "../support/errors.js";
import { dampedFactor, deadInputs, descendingDiagonal } from "./gptq-factor.js";
import {
  BLOCK_ROWS,
  type BlockLoops,
  plainBlockLoops,
  STRIP_COLUMNS,
  TOGETHER,
  vectorBlockLoops,
} from "./gptq-loops.js";
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

let loops: BlockLoops | null = null;

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
    this.#blockSize = alignedBlock(Math.min(blockSize, BLOCK_ROWS), this.#group);
    this.#scales = grid.scales;
    this.#zeroPoints = grid.zeroPoints;
    this.#scaleIndex = matrixScaleIndex(inputs, outputs, granularity);
    this.#codes = new Int8Array(inputs * outputs);
    this.#limits = codeRange(scheme.bits, scheme.zero.kind);
  }

  async run(): Promise<Quantized> {
    const widest = Math.max(STRIP_COLUMNS, Math.floor(SLICE_NUMBERS / Math.max(this.#inputs, 1)));
    const slices = Math.ceil(this.#outputs / widest);
    // Equal slices, whole strips: a narrow rest would cost a product as many calls as a whole slice.
    const width = Math.ceil(this.#outputs / Math.max(slices, 1) / STRIP_COLUMNS) * STRIP_COLUMNS;
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
    // Where a group spans blocks, its scales need all its rows up to date.
    const panel = Math.max(this.#blockSize, this.#group ?? 0);
    for (let start = 0; start < this.#inputs; start += this.#blockSize) {
      const end = Math.min(start + this.#blockSize, this.#inputs);
      const top = start - (start % panel);
      if (start > top) await this.#takeOut(work, top, start, end);
      else if (start > 0) await this.#takeOut(work, 0, start, Math.min(start + panel, this.#inputs));
      this.#roundBlock(work, start, end, left);
    }
  }

  /** Rows [start, end) -= U[from..start, start..end]ᵀ times the errors in rows [from, start). */
  async #takeOut(work: Matrix, from: number, start: number, end: number): Promise<void> {
    const factors = block(this.#factor, from, start, start, end);
    const errors = matrixOf(start - from, work.cols, work.data.subarray(from * work.cols, start * work.cols));
    subtractBlock(work, start, 0, await this.#gemm(factors, errors, { transposeA: true }));
  }

  /** Rounds positions [start, end) of a slice; what is left in their rows are their errors. */
  #roundBlock(work: Matrix, start: number, end: number, left: number): void {
    const { rows, factors, spread } = (loops ??= vectorBlockLoops() ?? plainBlockLoops());
    const [size, count] = [this.#inputs, end - start];
    for (let i = 0; i < count; i++) {
      const row = (start + i) * size + start;
      factors.set(this.#factor.data.subarray(row, row + count), i * BLOCK_ROWS);
    }
    const group = this.#group;
    const together = group === null || group % TOGETHER === 0 ? TOGETHER : 1;
    for (let from = 0; from < work.cols; from += STRIP_COLUMNS) {
      const width = Math.min(STRIP_COLUMNS, work.cols - from);
      if (width < STRIP_COLUMNS) rows.fill(0);
      for (let i = 0; i < count; i++) {
        const row = (start + i) * work.cols + from;
        rows.set(work.data.subarray(row, row + width), i * STRIP_COLUMNS);
      }
      for (let first = 0; first < count; first += together) {
        const last = Math.min(first + together, count);
        for (let i = first; i < last; i++) {
          if (group !== null && (start + i) % group === 0)
            this.#chooseGroup(work, rows, start, i, count, left, from, width);
          this.#roundRow(rows, start + i, i * STRIP_COLUMNS, left + from, width);
          spread(i, 1, i + 1, last);
        }
        if (last < count) spread(first, last - first, last, count);
      }
      for (let i = 0; i < count; i++) {
        const row = i * STRIP_COLUMNS;
        work.data.set(rows.subarray(row, row + width), (start + i) * work.cols + from);
      }
    }
  }

  /** Row i of the order, columns [left, left + width): a row of values becomes one of errors. */
  #roundRow(rows: Float64Array, i: number, row: number, left: number, width: number): void {
    const [scales, zeroPoints, codes, column] = [this.#scales, this.#zeroPoints, this.#codes, this.#scaleIndex.column];
    const [lowest, highest] = this.#limits;
    const input = this.#inputAt(i);
    const scaleRow = this.#scaleIndex.row[input]!;
    const target = input * this.#outputs + left;
    const inverse = 1 / this.#factor.data[i * (this.#inputs + 1)]!;
    for (let c = 0; c < width; c++) {
      const at = scaleRow + column[left + c]!;
      const scale = scales[at]!;
      const zero = zeroPoints === null ? 0 : zeroPoints[at]!;
      const value = rows[row + c]!;
      const code = codeOf(value, scale, zero, lowest, highest);
      codes[target + c] = code;
      rows[row + c] = (value - Math.fround((code - zero) * scale)) * inverse;
    }
  }

  /** Scales of the group that starts at row i of the block, from the weight as it is now. */
  #chooseGroup(
    work: Matrix,
    rows: Float64Array,
    start: number,
    i: number,
    count: number,
    left: number,
    from: number,
    width: number,
  ): void {
    const size = Math.min(this.#group ?? 0, this.#inputs - start - i);
    const data = new Float32Array(size * width);
    for (let k = 0; k < size; k++) {
      const inBlock = i + k < count;
      const row = inBlock ? (i + k) * STRIP_COLUMNS : (start + i + k) * work.cols + from;
      data.set((inBlock ? rows : work.data).subarray(row, row + width), k * width);
    }
    const granularity = { kind: "channel", axis: 1 } as const;
    const grid = chooseGrid(
      { label: this.#weight.label, shape: [size, width], data },
      { ...this.#scheme, granularity },
    );
    const at = this.#scaleIndex.row[start + i]! + left + from;
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
