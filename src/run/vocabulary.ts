/** How many token ids a model knows. */

import { attrInt, type Model } from "../ir/graph.js";
import { EXIT, MambacError } from "../support/errors.js";
import type { Signature } from "./signature.js";

/**
 * Rows of the table that token ids index, else the width of the logits. Throws `signature/vocabulary` when the graph tells
 * neither.
 */
export function vocabularyOf(model: Model, signature: Signature): number {
  const { graph } = model;
  const lookup = graph.nodes.find((node) => node.op === "Gather" && node.inputs[1] === signature.tokens.name);
  // A table that the head shares has tokens as its columns.
  const axis = lookup === undefined ? 0 : attrInt(lookup, "axis", 0);
  const rows = graph.initializers.get(lookup?.inputs[0] ?? "")?.shape[axis];
  const width = signature.logits.shape.at(-1);
  const size = rows ?? (typeof width === "number" ? width : null);
  if (size !== null) return size;
  throw new MambacError(
    "signature/vocabulary",
    "the graph does not tell how many token ids it knows: neither an embedding table nor the width of the logits is known",
    EXIT.unsupported,
  );
}
