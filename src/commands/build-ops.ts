/** `mambac build-ops`: the operator library, from the sources that come with mambac. */

import { resolve } from "node:path";
import { type BuildResult, buildOps } from "../run/build-ops.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";
import { Progress, type Terminal } from "./terminal.js";

export interface BuildOpsCommandOptions {
  /** Folder; null for the one sessions look in. */
  readonly output: string | null;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Builds, and prints the path of the library. Throws `build-ops/unavailable`, `build-ops/folder` and `build-ops/compiler`. */
export async function buildOpsCommand(options: BuildOpsCommandOptions, terminal: Terminal): Promise<ExitCode> {
  const progress = new Progress(options.quiet ? null : terminal);
  progress.say("compiling the operators; this takes a minute or two");
  let result: BuildResult;
  try {
    result = await buildOps(options.output === null ? {} : { folder: resolve(options.output) });
  } catch (cause) {
    throw failure(cause);
  } finally {
    progress.done();
  }
  if (result.kind === "unavailable") {
    const instead = "; the functions in every compiled file run without the library";
    throw new MambacError("build-ops/unavailable", `the library cannot be built: ${result.reason}${instead}`);
  }
  const { library } = result;
  if (options.json) terminal.out(`${JSON.stringify({ command: "build-ops", library }, null, 2)}\n`);
  else terminal.out(`${library}\n`);
  if (options.output !== null && !options.quiet) {
    terminal.err(`sessions find it as MAMBAC_OPS_LIBRARY=${library}, or by --library\n`);
  }
  return EXIT.ok;
}

function failure(cause: unknown): unknown {
  if (!(cause instanceof Error)) return cause;
  if ("syscall" in cause) {
    const message = `cannot write the library: ${fileProblem(cause)}; name another folder with --output`;
    return new MambacError("build-ops/folder", message, EXIT.usage, { cause });
  }
  return new MambacError("build-ops/compiler", `the compiler failed: ${cause.message}`, EXIT.usage, { cause });
}
