/** Logits of every position of some sequences, whether a model is fed token by token or all at once. */

import { MambacError } from "../support/errors.js";
import { type Logits, logitsRow } from "./logits.js";
import type { LoadedPackage, Tokens } from "./stateful-model.js";

/** One token a call, so that a quantized state is rounded after each; or the whole sequence in one call. */
export type EvaluateMode = "token" | "call";

/** The row of a slot after the token at `position`. Positions must be asked for in order; rows last until the next. */
export interface LogitsSource {
  at(position: number): Promise<(slot: number) => Float32Array>;
}

/**
 * Starts from zero state; `rows` are as many sequences of one length as the model has slots. Throws `evaluate/logits` for
 * a model that answers for the last position only.
 */
export async function logitsSource(
  model: LoadedPackage,
  rows: readonly Tokens[],
  mode: EvaluateMode,
): Promise<LogitsSource> {
  model.reset();
  if (mode === "token") {
    return {
      at: async (t) => {
        const logits = await model.step(rows.map((ids) => ids[t] ?? 0));
        return (slot) => logitsRow(logits, slot, 0);
      },
    };
  }
  const logits: Logits = await model.prefill(rows);
  const length = rows[0]?.length ?? 0;
  if (logits.length !== length) {
    throw new MambacError(
      "evaluate/logits",
      `the model gives logits for ${logits.length} of ${length} positions; evaluate it with mode 'token'`,
    );
  }
  return { at: (position) => Promise.resolve((slot) => logitsRow(logits, slot, position)) };
}

/** A plain forward graph cannot step; its logits do not depend on how tokens are fed. */
export function possibleMode(model: LoadedPackage, mode: EvaluateMode): EvaluateMode {
  return model.stateful ? mode : "call";
}
