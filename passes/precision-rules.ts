/** What a recipe becomes once the precision of every projection is decided: ordinary rules, which need no measuring. */

import type { LinearRole } from "../src/rewrite/sites.js";
import { invariant } from "../src/support/errors.js";
import type { ActivationRule, PrecisionRule, QuantRecipe, RuleScope, SearchRule, WeightRule } from "./quant-recipes.js";
import type { PrecisionChoice } from "./search-precision.js";

/** Rules of a decision, in their order. */
export type PrecisionRules = Pick<QuantRecipe, "weights" | "activations">;

/** Exactly these choices, a rule for each. */
export function rulesOf(search: SearchRule, choices: readonly PrecisionChoice[]): PrecisionRules {
  return ruled(
    choices.map(({ role, layer, precision }) => ({
      scope: { roles: [role], layers: [layer] },
      precision: precisionNamed(search, precision),
    })),
  );
}

/**
 * The recipe as its search was decided. The first precision is said of all projections, then come those that have another,
 * a rule for each precision and set of layers.
 */
export function decidedRecipe(recipe: QuantRecipe, choices: readonly PrecisionChoice[]): QuantRecipe {
  const { search, ...rest } = recipe;
  if (search === undefined) return recipe;
  const [first, ...others] = search.precisions;
  const scopes = [
    ...(first === undefined ? [] : [{ scope: { roles: search.roles }, precision: first }]),
    ...others.flatMap((precision) => scopesOf(choices, precision.name).map((scope) => ({ scope, precision }))),
  ];
  const { weights, activations } = ruled(scopes);
  return { ...rest, weights: [...rest.weights, ...weights], activations: [...rest.activations, ...activations] };
}

/** Every rule a search may lead to: what a list of passes must be ready for. */
export function possibleRecipe(recipe: QuantRecipe): QuantRecipe {
  const { search, ...rest } = recipe;
  if (search === undefined) return recipe;
  const { weights, activations } = ruled(
    // The first precision last: it is what holds where something must be known before the search.
    search.precisions.map((precision) => ({ scope: { roles: search.roles }, precision })).reverse(),
  );
  return { ...rest, weights: [...rest.weights, ...weights], activations: [...rest.activations, ...activations] };
}

/** Layers by role, roles with the same layers together. */
function scopesOf(choices: readonly PrecisionChoice[], precision: string): RuleScope[] {
  const layers = new Map<LinearRole, string[]>();
  for (const choice of choices) {
    if (choice.precision !== precision) continue;
    const known = layers.get(choice.role) ?? [];
    layers.set(choice.role, known.includes(choice.layer) ? known : [...known, choice.layer]);
  }
  const byLayers = new Map<string, { readonly roles: LinearRole[]; readonly layers: readonly string[] }>();
  for (const [role, list] of layers) {
    const key = JSON.stringify(list);
    const same = byLayers.get(key);
    if (same === undefined) byLayers.set(key, { roles: [role], layers: list });
    else same.roles.push(role);
  }
  return [...byLayers.values()];
}

/** A rule for each scope. */
export function ruled(
  scopes: readonly { readonly scope: RuleScope; readonly precision: PrecisionRule }[],
): PrecisionRules {
  return {
    weights: scopes.map(({ scope, precision: { scheme, method } }): WeightRule => ({ ...scope, scheme, method })),
    activations: scopes.map(({ scope, precision: { timing, share } }): ActivationRule => ({ ...scope, timing, share })),
  };
}

function precisionNamed(search: SearchRule, name: string): PrecisionRule {
  const found = search.precisions.find((precision) => precision.name === name);
  invariant(found !== undefined, `there is no precision ${name}`);
  return found;
}
