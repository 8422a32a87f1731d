/** The texts that commands measure on. */

import { readFileSync } from "node:fs";
import { EXIT, MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";

/** The bytes of a text. Throws `COMMAND/text`, exit code 2, where it cannot be read. */
export function readText(command: string, path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (cause) {
    const message = `cannot read the text ${path}: ${fileProblem(cause)}`;
    throw new MambacError(`${command}/text`, message, EXIT.usage, { cause });
  }
}
