/** How exactly a compiled model repeats itself when a sequence is cut into calls. */

import type { Model } from "../ir/graph.js";
import { OP_DOMAIN, parseOpName, type Requantize, type StateFormat } from "../ops/names.js";

export interface StatePrecision {
  /** The coarsest format among the scans. */
  readonly format: StateFormat;
  /** `token` when a scan rounds its state after every token of a call too, else `replay` when one does so now and then. */
  readonly requantize: Requantize;
}

const COARSENESS: readonly StateFormat[] = ["f32", "f16", "h8", "h4"];

/** Read from the operators; a model without mambac's own scans keeps its state as it is. */
export function statePrecision(model: Model): StatePrecision {
  let format: StateFormat = "f32";
  let requantize: Requantize = "call";
  for (const node of model.graph.nodes) {
    const spec = node.domain === OP_DOMAIN ? parseOpName(node.op) : null;
    if (spec?.kind !== "scan") continue;
    if (COARSENESS.indexOf(spec.format) > COARSENESS.indexOf(format)) format = spec.format;
    if (requantize !== "token" && spec.requantize !== "call") requantize = spec.requantize;
  }
  return { format, requantize };
}
