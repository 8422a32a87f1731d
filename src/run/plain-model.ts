/** Models that take no token ids and carry no state, such as those of pictures: run as they are, on tensors by name. */

import type { Graph, Model } from "../ir/graph.js";
import { f32Tensor, floatValues, type Tensor } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { readModel } from "../onnx/read.js";
import { EXIT, MambacError } from "../support/errors.js";
import { Random } from "../support/random.js";
import { countCustomOps } from "./executed-ops.js";
import { findOpsLibrary, type LibraryChoice } from "./locate.js";
import type { Logits } from "./logits.js";
import { openNativeSession } from "./native-session.js";
import { openSession } from "./session.js";
import { STATES_KEY } from "./signature.js";

export interface PlainModel {
  /** The op library it runs with; null for the functions in the model. */
  readonly library: string | null;
  run(feeds: ReadonlyMap<string, Tensor>): Promise<ReadonlyMap<string, Tensor>>;
  close(): Promise<void>;
}

/** Has the model neither token ids nor states, but float tensors alone to read? */
export function isPlain({ graph, metadata }: Model): boolean {
  const states = metadata.get(STATES_KEY);
  const inputs = graph.inputs.filter(({ name }) => !graph.initializers.has(name));
  const floats = inputs.every(({ type }) => type?.kind === "tensor" && type.dtype === "f32");
  return floats && (states === undefined || states === "[]");
}

/** Refuses a model without token ids where `command` works on them. Throws `COMMAND/next-token`, exit code 4. */
export function requireTokens(model: Model, command: string): void {
  if (!isPlain(model)) return;
  const message =
    `mambac ${command} is about the next token, and this model reads no tokens, but ` +
    `${model.graph.inputs.map(({ name }) => name).join(", ")}; mambac verify compares such models`;
  throw new MambacError(`${command}/next-token`, message, EXIT.unsupported);
}

/** Opens a model with the op library where one is found and the model has operators of it. Throws `session/...`, `ort/...`. */
export async function openPlainModel(
  path: string,
  options: { readonly library?: LibraryChoice; readonly threads?: number } = {},
): Promise<PlainModel> {
  const { library = "auto", threads = 1 } = options;
  const found = findOpsLibrary(library);
  if (found.kind === "found" && countCustomOps(readModel(path).model).size > 0) {
    const session = await openNativeSession(path, { threads, library: found.path });
    return {
      library: found.path,
      run: (feeds) => Promise.resolve(session.run(feeds)),
      close: () => Promise.resolve(session.close()),
    };
  }
  const session = await openSession(path, { threads, optimization: "all" });
  return { library: null, run: (feeds) => session.run(feeds), close: () => session.release() };
}

/** Normal numbers for every input; a free first axis is the batch. Throws `plain/input` for inputs that are no pictures. */
export function randomInputs(graph: Graph, batch: number, seed: number): Map<string, Tensor> {
  const feeds = new Map<string, Tensor>();
  for (const { name, type } of graph.inputs) {
    if (graph.initializers.has(name)) continue;
    const shape = type?.kind === "tensor" ? type.shape : null;
    const sizes = shape?.map((dim, axis) => (typeof dim === "number" ? dim : axis === 0 ? batch : null)) ?? [null];
    const known = sizes.filter((size) => size !== null);
    if (type?.kind !== "tensor" || type.dtype !== "f32" || known.length !== sizes.length) {
      throw new MambacError(
        "plain/input",
        `the input ${name} is no float32 tensor of a fixed size, so mambac cannot make one up`,
        EXIT.unsupported,
      );
    }
    const random = new Random(seed).split(name);
    const values = Float32Array.from({ length: elementCount(known) }, () => random.normal());
    feeds.set(name, f32Tensor(known, values));
  }
  return feeds;
}

/** An output as scores: everything behind its first axis is one row. */
export function asScores(tensor: Tensor): Logits {
  const batch = tensor.shape[0] ?? 1;
  const data = Float32Array.from(floatValues(tensor));
  return { batch, length: 1, vocabulary: data.length / batch, data };
}
