/** How a command ends when it cannot do what it was asked to. */

import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import type { Terminal } from "./terminal.js";

/**
 * Tells a failure and gives its exit code. People get a sentence for what they can mend, and for a bug the trace and a
 * request to report it. With `json` the result channel carries the failure as a document too.
 */
export function reportFailure(cause: unknown, terminal: Terminal, options: { readonly json: boolean }): ExitCode {
  const failure = describe(cause);
  if (options.json) terminal.out(`${JSON.stringify({ error: failure }, null, 2)}\n`);
  if (failure.exitCode === EXIT.bug) {
    terminal.err(
      `mambac: internal error: ${failure.message}\n${traceOf(cause)}` +
        "This is a bug in mambac. Please report it with the command you ran; `mambac compile --repro DIR` collects what is needed.\n",
    );
  } else {
    terminal.err(`mambac: ${failure.message}\n`);
  }
  return failure.exitCode;
}

interface Failure {
  readonly code: string;
  readonly message: string;
  readonly exitCode: ExitCode;
}

function describe(cause: unknown): Failure {
  if (cause instanceof MambacError) return { code: cause.code, message: cause.message, exitCode: cause.exitCode };
  return { code: "bug", message: cause instanceof Error ? cause.message : String(cause), exitCode: EXIT.bug };
}

function traceOf(cause: unknown): string {
  if (!(cause instanceof Error) || cause.stack === undefined) return "";
  const below = cause.cause instanceof Error ? `caused by ${cause.cause.stack ?? cause.cause.message}\n` : "";
  return `${cause.stack}\n${below}`;
}
