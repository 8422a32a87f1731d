/**
 * npm run sweep:spellings [-- RUNS [SEED]]
 *
 * Random Mamba graphs of every family and form through recognition, freeing and lowering, each compared with itself
 * before; and as many sabotaged ones, which must stay as they are. Prints every failure with the spelling that makes it.
 * 200 runs (the default) take some minutes. Ends with 1 when anything failed.
 */

import fc from "fast-check";
import { freeLength } from "../passes/free-length.js";
import { raiseRecipe } from "../passes/recipes.js";
import type { Family } from "../src/ops/names.js";
import { step } from "../src/rewrite/pipeline.js";
import { semanticOps } from "../src/rewrite/semantic.js";
import { arbitraryCase, FORMS, type GraphForm, type MambaCase, sabotagesOf } from "../test/support/mamba-graphs.js";
import { expectSame, runAll, sampleOf } from "../test/support/pass-runs.js";
import { numberArguments } from "./number-arguments.js";

const FAMILIES: readonly Family[] = ["mamba1", "mamba2"];
const STEPS = [...raiseRecipe(), step(freeLength, {})];

/** Why a case fails, or null. */
async function failureOf(mamba: MambaCase): Promise<string | null> {
  try {
    const sample = await sampleOf(mamba);
    const { model, remarks } = await runAll(sample.model, STEPS);
    const found = semanticOps(model.graph.nodes).filter(({ kind }) => kind === "scan").length;
    if (mamba.spelling.sabotage === null) {
      const reasons = remarks.filter(({ kind }) => kind === "missed").map(({ message }) => message);
      if (found !== mamba.sizes.layers) return `${found} of ${mamba.sizes.layers} scans: ${reasons.join("; ")}`;
    } else if (found > 0 && !isHarmless(mamba)) return `${found} scans that are none`;
    await expectSame(sample, model);
    return null;
  } catch (cause) {
    return cause instanceof Error ? cause.message : String(cause);
  }
}

/** One chunk that starts from zero carries no state, so losing it between chunks changes nothing. */
function isHarmless({ spelling }: MambaCase): boolean {
  return spelling.form === "chunked" && spelling.sabotage === "state-not-carried";
}

async function main(): Promise<void> {
  const [runs, seed] = numberArguments([200, 1]);
  let failures = 0;
  for (const family of FAMILIES) {
    for (const form of FORMS.filter((name) => suits(family, name))) {
      const good = arbitraryCase(family, form);
      const wrong = fc
        .tuple(good, fc.constantFrom(...sabotagesOf(form)))
        .map(
          ([mamba, sabotage]): MambaCase => ({ ...mamba, spelling: { ...mamba.spelling, sabotage, dtBias: "add" } }),
        );
      for (const [label, cases] of [
        ["as it is", good],
        ["sabotaged", wrong],
      ] as const) {
        let failed = 0;
        for (const mamba of fc.sample(cases, { numRuns: runs, seed })) {
          const failure = await failureOf(mamba);
          if (failure === null) continue;
          failed += 1;
          process.stdout.write(`FAIL ${family} ${form} ${label}: ${failure}\n  ${JSON.stringify(mamba)}\n`);
        }
        failures += failed;
        process.stdout.write(`${family} ${form} ${label}: ${runs - failed} of ${runs}\n`);
      }
    }
  }
  process.exitCode = failures === 0 ? 0 : 1;
}

function suits(family: Family, form: GraphForm): boolean {
  // Branches are taken apart before any pass runs; the tests of branches compile them.
  if (form === "branches") return false;
  return family === "mamba2" || (form !== "chunked" && form !== "linear-attention");
}

await main();
