/** The search of a recipe as a step: parts of the model are quantized for trial by the very passes that do it for good. */

import type { Fact } from "../src/rewrite/pass.js";
import { calibratedStep, runSteps, type Step } from "../src/rewrite/pipeline.js";
import type { LinearSite } from "../src/rewrite/sites.js";
import { invariant } from "../src/support/errors.js";
import { type PrecisionRules, ruled, rulesOf } from "./precision-rules.js";
import type { SearchBudgetRule, SearchRule } from "./quant-recipes.js";
import { activationSteps, lowBitSteps, roundingSteps, schemeOf, settled } from "./rounding-steps.js";
import { BUDGET_KINDS, type PrecisionChoice, type SearchBudget, searchPrecision } from "./search-precision.js";

const KNOWN: ReadonlySet<Fact> = new Set<Fact>(["linears-aligned"]);

/** Decides; `decide` gets the choices. What trials need is calibrated on the float model, in one go. */
export function searchStep(search: SearchRule, decide: (choices: readonly PrecisionChoice[]) => void): Step {
  const uniform = search.precisions.map((precision) => ({
    name: precision.name,
    rules: ruled([{ scope: { roles: search.roles }, precision }]),
  }));
  return calibratedStep(
    searchPrecision,
    (model) => uniform.flatMap(({ rules }) => trialSteps(rules).flatMap((trial) => trial.requests?.(model) ?? [])),
    (statistics) => ({
      precisions: uniform.map(({ name, rules }) => ({
        name,
        schemeFor: (site: LinearSite) => schemeOf(rules, site, null),
      })),
      includes: ({ role }) => search.roles.includes(role),
      each: search.each,
      budget: budgetOf(search.budget),
      sequences: search.sequences,
      decide,
      quantize: async (model, choices, { execute, gemm }) => {
        const hooks = {
          execute,
          gemm,
          collect: () => Promise.resolve(statistics),
          report: () => undefined,
          now: () => 0,
        };
        return (await runSteps(model, trialSteps(rulesOf(search, choices)), hooks, KNOWN)).model;
      },
    }),
  );
}

function trialSteps(rules: PrecisionRules): Step[] {
  const fixed = settled(rules);
  return [...roundingSteps(fixed), ...activationSteps(fixed), ...lowBitSteps(fixed)];
}

function budgetOf(rule: SearchBudgetRule): SearchBudget {
  const kind = BUDGET_KINDS.find((name) => rule[name] !== undefined);
  const most = kind === undefined ? undefined : rule[kind];
  invariant(kind !== undefined && most !== undefined, "a search without a budget");
  return { kind, most };
}
