/** The step size d = clip(softplus(dt + dt_bias), dt_min, dt_max), shared by every lowering of a scan. */

import type { Body } from "./body.js";

/** What both graphs and function bodies can do. */
interface Writer {
  op(op: string, inputs: readonly string[]): string;
  float(value: number): string;
}

/** dt and the result [B,L,*], bias [*]; the bounds are the caller's attributes. */
export function stepSize(body: Body, dt: string, bias: string): string {
  const d = softplusOf(body, body.add(dt, bias));
  return body.op("Clip", [d, body.floatOf("dt_min"), body.floatOf("dt_max")]);
}

/**
 * softplus to full relative precision, from operators that are vectorised everywhere.
 *
 * ONNX Runtime's Softplus calls log1p for one element at a time on the CPU (for 1536 channels 10 us a token), and on CUDA
 * computes log(1 + exp(v)), which keeps only absolute precision: at d = 0.001, where trained models live, it is off by
 * 6e-5. Here u = exp(-|v|), w = fl(1 + u), and log(1 + u) = log(w) + (u - (w - 1)) / w up to an error of eps^2; the
 * division may be dropped, as the correction is below eps where w is far from 1.
 */
export function softplusOf(writer: Writer, value: string): string {
  const positive = writer.op("Relu", [value]);
  const u = writer.op("Exp", [writer.op("Sub", [value, writer.op("Add", [positive, positive])])]);
  const w = writer.op("Add", [u, writer.float(1)]);
  const correction = writer.op("Sub", [u, writer.op("Sub", [w, writer.float(1)])]);
  const log = writer.op("Add", [writer.op("Log", [w]), correction]);
  return writer.op("Add", [log, positive]);
}
