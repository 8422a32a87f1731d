/** Do a prefill and a decode graph compute the same thing? Measured, by running both on the same tokens. */

import { Random } from "../support/random.js";
import { loadPackage } from "./stateful.js";
import type { LoadedPackage } from "./stateful-model.js";

/** Sequences that are run. */
const BATCH = 2;

/**
 * Largest difference of the logits, relative to the largest logit, between one prefill call and the decode graph fed token
 * by token from zero state. `vocabulary` bounds the token ids, `length` is one the prefill graph works for, `dims` gives lengths of symbolic state axes of the decode
 * graph. Null when a graph cannot be run on its own (the reason goes to `onNotice`).
 */
export async function pairDisagreement(
  prefillPath: string,
  decodePath: string,
  options: {
    readonly vocabulary: number;
    readonly length: number;
    readonly dims: Readonly<Record<string, number>>;
    readonly onNotice: (message: string) => void;
  },
): Promise<number | null> {
  const random = new Random(0).split("pair-agreement");
  const tokens = Array.from({ length: BATCH }, () =>
    Array.from({ length: options.length }, () => random.integer(options.vocabulary)),
  );
  const load = (path: string): Promise<LoadedPackage> =>
    loadPackage(path, { batch: BATCH, library: "none", dims: options.dims, onNotice: () => undefined });
  try {
    await using prefill = await load(prefillPath);
    await using decode = await load(decodePath);
    const whole = await prefill.prefill(tokens);
    // A decode graph that reads no state takes whole sequences, too.
    const other = decode.stateful ? null : await decode.prefill(tokens);
    if (whole.length !== options.length || (other ?? whole).length !== options.length) return null;
    let difference = 0;
    let scale = 0;
    for (let t = 0; t < options.length; t++) {
      const one = other ?? (await decode.step(tokens.map((row) => row[t] ?? 0)));
      for (let b = 0; b < BATCH; b++) {
        for (let v = 0; v < whole.vocabulary; v++) {
          const expected = whole.data[(b * options.length + t) * whole.vocabulary + v] ?? 0;
          const actual = one.data[(other === null ? b : b * options.length + t) * whole.vocabulary + v] ?? Number.NaN;
          difference = Math.max(difference, Math.abs(actual - expected));
          scale = Math.max(scale, Math.abs(expected));
        }
      }
    }
    return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference / scale;
  } catch (cause) {
    options.onNotice(
      `the pair could not be compared by running it: ${cause instanceof Error ? cause.message : String(cause)}`,
    );
    return null;
  }
}
