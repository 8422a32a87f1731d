/** What a package is made from, and what one holds. Writers turn the first into the second and touch no files. */

import type { Model } from "../ir/graph.js";
import { type Signature, STATES_KEY, type StatePair } from "../run/signature.js";
import { EXIT, MambacError } from "../support/errors.js";
import type { SideFiles } from "./side-files.js";

export interface PackageSource {
  readonly model: Model;
  readonly signature: Signature;
  /** What the model is called: its file without the ending. */
  readonly name: string;
  /** Its weights lie in a side file, and will in the package. */
  readonly external: boolean;
  /** Path of the op library that goes with it, or null. */
  readonly library: string | null;
  /** Tokenizer and configuration, or null. */
  readonly sideFiles: SideFiles | null;
}

/** Files of a package. Paths are relative to its folder and have forward slashes. */
export interface PackagePlan {
  readonly model: { readonly path: string; readonly dataSuffix: ".data" | "_data" };
  readonly texts: readonly { readonly path: string; readonly text: string }[];
  readonly copies: readonly { readonly path: string; readonly from: string }[];
  /** What whoever ships it should know, a sentence each. */
  readonly notes: readonly string[];
}

/** The states of a model that a runtime shall carry. Throws `package/states` when it has none. */
export function carriedStates(source: PackageSource): readonly StatePair[] {
  const { states } = source.signature;
  if (states.length > 0) return states;
  throw new MambacError(
    "package/states",
    `the model has no state to carry from call to call (metadata ${STATES_KEY}); ship the file as it is`,
    EXIT.unsupported,
  );
}
