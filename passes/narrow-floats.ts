/**
 * narrow-floats: turns a lowered graph of float32 into one of float16.
 *
 * Purpose: weights and activations are half as many bytes, and devices multiply halves several times faster. No paper.
 * Algebra: none; every value that is kept in float16 is rounded to the nearest half. Products, gathers and mambac's operators
 * read and give float16 (they compute in float32 inside); so do elementwise operators all of whose operands are float16 already. In
 * float32 stay, with casts around them: the statistics of norms up to their gain, exponentials, softmax, cumulative sums,
 * sums of two computed values (so the residual stream is float32, as Mamba models are trained), what subgraphs read, and
 * every operator not named in the rules. Parameters of mambac's operators are float32 by their contract.
 * States keep their formats. Windows of convolutions and attention caches, which hold activations, become float16; token
 * inputs and logits keep their types, so logits are cast to float32 at the end.
 * Refuses: weights beyond 65504, by name; quantized activations (exit 4). What becomes zero or loses bits below 2^-14 is
 * told. Large
 * weights are looked at when they are written, so that they are computed once.
 *
 *     before   x: f32 -> MatMul(W: f32) -> com.mambac.Mamba2ScanH8Max
 *     after    x: f32 -> Cast(f16) -> MatMul(W: f16) -> com.mambac.Mamba2ScanH8Max, and the float16 function of that name
 */

import type { HalfLoss } from "../src/quant/halves.js";
import { narrowed } from "../src/rewrite/narrow.js";
import { definePass, type Pass, type Remark } from "../src/rewrite/pass.js";

export const narrowFloats: Pass<Record<string, never>> = definePass({
  name: "narrow-floats",
  summary: "keep weights and activations in float16",
  exactness: "lossy",
  requires: ["lowered"],
  establishes: [],
  invalidates: [],
  run(model, _options, context) {
    const { model: result, nodes, tally } = narrowed(model);
    if (!tally.settled) {
      return Promise.resolve({ model: result, changed: nodes, whenRead: () => lossRemark(tally.total) });
    }
    const remark = lossRemark(tally.total);
    if (remark !== null) context.report(remark);
    return Promise.resolve({ model: result, changed: nodes });
  },
});

function lossRemark({ values, zeroed, subnormal }: HalfLoss): Omit<Remark, "pass"> | null {
  if (zeroed + subnormal === 0) return null;
  return {
    kind: "warning",
    code: "narrow-floats/subnormal",
    where: "model",
    message: `of ${values} weights ${zeroed} are too small for float16 and become zero, ${subnormal} keep fewer than eleven bits`,
  };
}
