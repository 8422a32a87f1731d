import fc from "fast-check";
import { it } from "vitest";
import { tidy } from "../../passes/tidy.js";
import { apply, difference, outputsOf, tolerance } from "../support/pass-check.js";
import { arbitraryRaised, raisedModel } from "../support/raised-models.js";

it("x", async () => {
  let n = 0;
  let t0 = performance.now();
  for (const s of fc.sample(arbitraryRaised(), { numRuns: 25, seed: 1 })) {
    const m = raisedModel(s);
    const before = await outputsOf(m, 3);
    const tol = await tolerance(m, 3, before);
    const a = await apply(m, tidy, {});
    const after = await outputsOf(a.model, 3);
    console.log(
      s.family,
      s.decoy,
      a.changed,
      tol.toExponential(1),
      difference(after, before).toExponential(1),
      (performance.now() - t0).toFixed(),
    );
    t0 = performance.now();
  }
});
