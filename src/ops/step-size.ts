/** The step size d = clip(softplus(dt + dt_bias), dt_min, dt_max), shared by every scan body. */

import type { Body } from "./body.js";

/**
 * dt and the result [B, L, *], bias [*].
 *
 * ONNX Runtime's Softplus computes log(1 + exp(v)), which keeps only absolute precision: at d = 0.001, where trained
 * models live, it is off by 6e-5. With w = fl(1 + u), log(1 + u) = log(w) + (u - (w - 1)) / w up to an error of eps^2;
 * the division may be dropped, as the correction is below eps where w is far from 1.
 */
export function stepSize(body: Body, dt: string, bias: string): string {
  const value = body.add(dt, bias);
  const positive = body.op("Relu", [value]);
  const u = body.exp(body.sub(value, body.add(positive, positive)));
  const w = body.add(u, body.float(1));
  const correction = body.sub(u, body.sub(w, body.float(1)));
  const softplus = body.add(body.add(body.op("Log", [w]), correction), positive);
  return body.op("Clip", [softplus, body.floatOf("dt_min"), body.floatOf("dt_max")]);
}
