/** Identity of a graph with its weights, whatever files they are in. */

import { createHash } from "node:crypto";
import type { Model } from "../ir/graph.js";
import type { Tensor } from "../ir/tensor.js";
import { modelMessage } from "./encode-model.js";
import { encode } from "./proto.js";

/** Bytes hashed at a time, so that weights in files need not fit in memory. */
const STEP = 1 << 24;

/**
 * SHA-256 as hex of the main graph: nodes, interface and weights. Who made the model, its metadata and its functions do
 * not count: they change with the version of mambac, the values of the graph do not.
 */
export function graphDigest(model: Model): string {
  const weights = [...model.graph.initializers.values()];
  const order = new Map<Tensor, number>(weights.map((tensor, at) => [tensor, at]));
  const bare: Model = {
    ...model,
    producerName: "",
    producerVersion: "",
    doc: "",
    functions: [],
    metadata: new Map(),
    graph: { ...model.graph, doc: "", valueInfo: new Map(), metadata: new Map() },
  };
  const message = modelMessage(bare, (tensor) => {
    const at = order.get(tensor);
    return at === undefined || tensor.strings !== null ? undefined : { location: "weights", offset: at };
  });
  const hash = createHash("sha256");
  for (const piece of encode("ModelProto", message).pieces) hash.update(piece);
  for (const tensor of weights) {
    if (tensor.strings !== null) continue;
    // A lazy tensor computes anew on every call, so it is asked once.
    const step = tensor.residence === "lazy" ? Math.max(1, tensor.byteLength) : STEP;
    for (let start = 0; start < tensor.byteLength; start += step) {
      hash.update(tensor.slice(start, Math.min(tensor.byteLength, start + step)));
    }
  }
  return hash.digest("hex");
}
