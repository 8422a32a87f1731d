/**
 * widen-halves: turns a graph of float16 or bfloat16 into the same graph in float32.
 *
 * Purpose: recognition proves a region by running it, and half precision cannot be told from a wrong reading; kernels take
 * float32, and most CPUs compute nothing else. No paper.
 * Algebra: every f16 and bf16 value is an f32 value. Weights keep their values; what the source rounds between two
 * operators is not rounded any more, so results are closer to those of the model that was exported.
 * Refuses nothing. Inputs and outputs change their type as well, and the file grows until a recipe rounds the weights:
 * a remark says both.
 *
 *     before   x: f16 -> MatMul(W: f16) -> Cast(f32) -> ... -> Cast(f16)
 *     after    x: f32 -> MatMul(W: f32) -> Cast(f32) -> ... -> Cast(f32)
 */

import { definePass, type Pass } from "../src/rewrite/pass.js";
import { widened } from "../src/rewrite/widen.js";

export const widenHalves: Pass<Record<string, never>> = definePass({
  name: "widen-halves",
  summary: "compute in float32 what the source computes in float16 or bfloat16",
  exactness: "real-exact",
  requires: [],
  establishes: [],
  invalidates: [],
  run(model, _options, context) {
    const result = widened(model);
    if (result.changed > 0) {
      context.report({
        kind: "warning",
        code: "widen-halves/float32",
        where: "model",
        message:
          "the source is of half precision: the compiled file computes in float32, its float inputs and outputs are float32, " +
          "and weights that no recipe rounds take twice their bytes",
      });
    }
    return Promise.resolve(result);
  },
});
