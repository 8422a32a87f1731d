/**
 * Errors for people and errors for us.
 *
 * `MambacError` is something the user can act on: it says what is wrong, where, and what to do, and carries the exit
 * code of the command line. `InvariantError` is a bug in mambac and never has a friendlier name.
 */

/** Exit codes of the command line, by meaning. */
export const EXIT = {
  ok: 0,
  bug: 1,
  usage: 2,
  belowGate: 3,
  unsupported: 4,
  calibration: 5,
  interrupted: 130,
} as const;

export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

/** A problem with the input, the options or the environment. `code` is stable, `message` is for people. */
export class MambacError extends Error {
  readonly code: string;
  readonly exitCode: ExitCode;

  constructor(code: string, message: string, exitCode: ExitCode = EXIT.usage, options?: ErrorOptions) {
    super(message, options);
    this.name = "MambacError";
    this.code = code;
    this.exitCode = exitCode;
  }
}

/** A bug in mambac. */
export class InvariantError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "InvariantError";
  }
}

/** Throws `InvariantError` unless `condition` holds. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}

/** Closes an exhaustive switch. */
export function assertNever(value: never): never {
  throw new InvariantError(`unreachable: ${JSON.stringify(value)}`);
}
