/** How far two models are apart, on the same positions of the same data. */

import type { Model } from "../ir/graph.js";
import type { SampledRows } from "../quant/row-sample.js";
import { invariant } from "../support/errors.js";
import { observe } from "./calibrate.js";
import type { Dataset } from "./dataset.js";
import { klBits, summarise } from "./logits.js";
import { readSignature } from "./signature.js";

/** Bytes of logits kept, so that a large vocabulary does not fill the memory. */
const KEPT_BYTES = 2 ** 27;

/**
 * Logits of an executable model at positions that depend on the data alone: all of them where they fit into 128 MiB, else a
 * sample. Throws what calibrating throws.
 */
export async function logitsSample(
  model: Model,
  dataset: Dataset,
  options: { readonly boundaries: readonly string[]; readonly threads: number },
): Promise<SampledRows> {
  const { logits } = readSignature(model);
  const width = logits.shape.at(-1);
  const rows = Math.max(1, Math.floor(KEPT_BYTES / (4 * (typeof width === "number" ? width : 2 ** 16))));
  let kept: SampledRows | null = null;
  await observe(
    {
      ...options,
      model,
      dataset,
      requests: [],
      samples: [{ value: logits.name, rows: Math.min(rows, dataset.count * dataset.longest) }],
      makeObserver: () => ({ observe: () => undefined }),
    },
    {
      statistic: () => undefined,
      sample: (_value, sampled) => {
        kept = sampled;
      },
    },
  );
  invariant(kept !== null, "the model has no logits");
  return kept;
}

/** Mean Kullback-Leibler divergence of two samples of logits, in bits: 0 where they agree. */
export function meanKlBits(expected: SampledRows, actual: SampledRows): number {
  const { rows, channels } = expected;
  invariant(rows > 0 && rows === actual.rows && channels === actual.channels, "the logits are of different positions");
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    const p = expected.data.subarray(row * channels, (row + 1) * channels);
    const q = actual.data.subarray(row * channels, (row + 1) * channels);
    sum += klBits(p, summarise(p).logSum, q, summarise(q).logSum);
  }
  return sum / rows;
}
