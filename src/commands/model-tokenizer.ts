/** Which tokenizer goes with a model when no one says. */

import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import type { LoadedPackage } from "../run/stateful.js";
import { byteTokenizer, loadTokenizer, type Tokenizer } from "../run/tokenizer.js";
import { MambacError } from "../support/errors.js";

/** Vocabulary of a byte-level model. */
const BYTES = 256;

/**
 * The tokenizer asked for; else bytes for a vocabulary of 256; else the tokenizer.json beside the model. Throws
 * `tokenizer/missing`.
 */
export function tokenizerFor(model: LoadedPackage, choice: string | null): Tokenizer {
  if (choice !== null) return loadTokenizer(choice);
  const size = model.signature.logits.shape.at(-1);
  if (size === BYTES) return byteTokenizer;
  const beside = join(dirname(model.modelPath), "tokenizer.json");
  if (existsSync(beside)) return loadTokenizer(beside);
  throw new MambacError(
    "tokenizer/missing",
    `the model has a vocabulary of ${typeof size === "number" ? size : "unknown size"} and no tokenizer.json beside it; name one with --tokenizer, or say --tokenizer bytes`,
  );
}
