/** Which statistics to take when no one says: of what projections, convolutions and scans read and make. */

import type { Model, Node } from "../ir/graph.js";
import { OP_DOMAIN } from "../ops/names.js";
import type { StatRequest } from "../quant/calibration.js";
import type { Signature } from "./signature.js";

export interface UsualRequestOptions {
  /** Also x x^T of what projections read; a matrix of the square of their inputs each. */
  readonly secondMoments: boolean;
}

/**
 * For every activation that a projection reads: largest and mean magnitude by channel, the histogram. For inputs and
 * results of scans: largest magnitude by channel, the histogram; of convolutions: those of the whole tensor. States,
 * weights and gains are left out.
 */
export function usualRequests(model: Model, pairs: Signature["states"], options: UsualRequestOptions): StatRequest[] {
  const { graph } = model;
  const states = new Set(pairs.flatMap(({ input, output }) => [input, output]));
  const made = new Set(graph.nodes.flatMap((node) => node.outputs));
  const isActivation = (name: string): boolean => name !== "" && made.has(name) && !states.has(name);
  const requests: StatRequest[] = [];
  for (const node of graph.nodes) {
    const projected = projectionInput(model, node);
    if (projected !== null && isActivation(projected)) {
      requests.push(...activationRequests(projected), { value: projected, kind: "meanabs", perChannel: true });
      if (options.secondMoments) requests.push({ value: projected, kind: "second-moment", perChannel: true });
    }
    if (node.domain !== OP_DOMAIN) continue;
    // Convolutions may have their channels before the tokens, and theirs are not the last axis then.
    const requestsOf = /^CausalConv(Silu)?$/.test(node.op) ? tensorRequests : activationRequests;
    requests.push(...[...node.inputs, ...node.outputs].filter(isActivation).flatMap(requestsOf));
  }
  return requests;
}

function activationRequests(value: string): StatRequest[] {
  return [{ value, kind: "absmax", perChannel: true }, ...tensorRequests(value)];
}

function tensorRequests(value: string): StatRequest[] {
  return [
    { value, kind: "absmax", perChannel: false },
    { value, kind: "percentile", perChannel: false },
  ];
}

/** The activation of a product with a two-dimensional weight. */
function projectionInput(model: Model, node: Node): string | null {
  if (node.domain !== "" || (node.op !== "MatMul" && node.op !== "Gemm")) return null;
  const [a, b] = node.inputs;
  if (a === undefined || b === undefined) return null;
  const isWeight = (name: string): boolean => model.graph.initializers.get(name)?.shape.length === 2;
  return isWeight(b) ? a : null;
}
