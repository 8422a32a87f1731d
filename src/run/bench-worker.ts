/** The process of one benchmark subject: opens it, then times a round whenever it is told to. */

import { InvariantError, MambacError } from "../support/errors.js";
import type { WorkerAnswer, WorkerRequest } from "./bench.js";
import { type OpenSubject, openSubject } from "./bench-subject.js";

let subject: OpenSubject | null = null;

async function answer(request: WorkerRequest): Promise<WorkerAnswer> {
  if (request.kind === "open") {
    subject = await openSubject(request.subject, request.settings);
    return { kind: "opened", facts: subject.facts };
  }
  if (subject === null) throw new InvariantError("a round was asked for before the subject was opened");
  return { kind: "timed", times: await subject.round() };
}

process.on("message", (request: WorkerRequest) => {
  void answer(request)
    .catch((cause: unknown): WorkerAnswer => {
      if (cause instanceof MambacError) {
        const { code, message, exitCode } = cause;
        return { kind: "failed", code, message, exitCode };
      }
      return {
        kind: "failed",
        code: null,
        message: cause instanceof Error ? (cause.stack ?? cause.message) : String(cause),
        exitCode: 1,
      };
    })
    .then((reply) => process.send?.(reply));
});

// The other side ends the process; should that side die, this one must not stay behind.
process.once("disconnect", () => process.exit(0));
