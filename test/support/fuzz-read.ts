/** One fuzzing step of the model reader, used by the tests (a few) and by `scripts/fuzz-read.ts` (many). */

import { formatModel } from "../../src/ir/text.js";
import { readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { MambacError } from "../../src/support/errors.js";
import { mutate, seededDraw } from "./mutate.js";

/** Longest time one damaged file may take, in milliseconds. */
const MAX_MS = 10_000;

/**
 * Reads a damaged copy of one of `files`. Gives the error code of the refusal, or "read" when the damage did not matter;
 * then the model is also printed, written and read again. Throws when anything but a MambacError comes out, or when it
 * takes too long.
 */
export function fuzzRead(files: readonly Uint8Array[], seed: number, folder: string): string {
  const random = seededDraw(seed);
  const file = files[random(files.length)];
  const donor = files[random(files.length)];
  if (file === undefined || donor === undefined) throw new Error("nothing to damage");
  const damaged = mutate(file, donor, random);
  const start = performance.now();
  const outcome = ((): string => {
    let model: ReturnType<typeof readModelBytes>["model"];
    try {
      model = readModelBytes(damaged, folder).model;
    } catch (error) {
      if (error instanceof MambacError) return error.code;
      throw new Error(`seed ${seed}: reading threw something else`, { cause: error });
    }
    try {
      formatModel(model);
      readModelBytes(encodeModel(model), folder);
      return "read";
    } catch (error) {
      throw new Error(`seed ${seed}: a model that was read cannot be printed, written or read again`, { cause: error });
    }
  })();
  const elapsed = performance.now() - start;
  if (elapsed > MAX_MS) throw new Error(`seed ${seed}: took ${elapsed} ms`);
  return outcome;
}
