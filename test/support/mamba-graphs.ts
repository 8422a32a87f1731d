/**
 * Mamba models in every spelling that exporters use (see `mamba-graphs/spelling.ts`), and how to run them.
 */

import type { Model } from "../../src/ir/graph.js";
import { boolTensor, f32Tensor, i64Tensor, type Tensor } from "../../src/ir/tensor.js";
import { elementCount } from "../../src/ir/types.js";
import { Random } from "../../src/support/random.js";
import { mambaModel } from "./mamba-graphs/model.js";
import { DEFAULT_SIZES, DEFAULT_SPELLING, type MambaSizes, type Spelling } from "./mamba-graphs/spelling.js";

export { arbitraryCase, type MambaCase } from "./mamba-graphs/arbitrary.js";
export { mambaModel } from "./mamba-graphs/model.js";
export * from "./mamba-graphs/spelling.js";

/** A model of the default sizes of its family, in the default spelling with changes. */
export function smallModel(changes: Partial<Spelling>, seed: number = 1, sizes: Partial<MambaSizes> = {}): Model {
  const spelling = { ...DEFAULT_SPELLING, ...changes };
  return mambaModel({ ...DEFAULT_SIZES[spelling.family], ...sizes }, spelling, seed);
}

/** Random inputs for a model: tokens below `vocabulary`, states of moderate size. */
export function randomFeeds(
  model: Model,
  dims: { readonly batch: number; readonly length: number; readonly vocabulary: number },
  seed: number,
): Map<string, Tensor> {
  const random = new Random(seed);
  const feeds = new Map<string, Tensor>();
  for (const input of model.graph.inputs) {
    if (model.graph.initializers.has(input.name) || input.type?.kind !== "tensor") continue;
    const shape = (input.type.shape ?? []).map((dim, axis) => {
      const known = typeof dim === "number" ? dim : Number(dim);
      return Number.isNaN(known) ? (axis === 0 ? dims.batch : dims.length) : known;
    });
    const count = elementCount(shape);
    if (input.type.dtype === "bool") {
      feeds.set(
        input.name,
        boolTensor(
          shape,
          Array.from({ length: count }, () => dims.length === 1),
        ),
      );
      continue;
    }
    const own = random.split(input.name);
    feeds.set(
      input.name,
      input.type.dtype === "i64"
        ? i64Tensor(
            shape,
            Array.from({ length: count }, () => own.integer(dims.vocabulary)),
          )
        : f32Tensor(
            shape,
            Float32Array.from({ length: count }, () => own.normal()),
          ),
    );
  }
  return feeds;
}
