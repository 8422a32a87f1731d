/**
 * Interleaved benchmarks of several ways to run a model.
 *
 * Each subject has a process of its own, since sessions that share one disturb each other, and only one of them works
 * at any time. Rounds go A, B, C, A, B, C, ..., so that a busy machine hits all alike, and figures are compared within
 * a round: medians of ratios, never ratios of medians far apart in time.
 */

import { type ChildProcess, fork } from "node:child_process";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { type ExitCode, InvariantError, MambacError } from "../support/errors.js";
import type { BenchSettings, BenchSubject, RoundTimes, SubjectFacts } from "./bench-plan.js";

export type WorkerRequest =
  | { readonly kind: "open"; readonly subject: BenchSubject; readonly settings: BenchSettings }
  | { readonly kind: "round" };

export type WorkerAnswer =
  | { readonly kind: "opened"; readonly facts: SubjectFacts }
  | { readonly kind: "timed"; readonly times: RoundTimes }
  /** `code` is null for anything that is no message for people. */
  | { readonly kind: "failed"; readonly code: string | null; readonly message: string; readonly exitCode: ExitCode };

/** What one subject did, or why it could not be measured. */
export type SubjectResult =
  | {
      readonly kind: "measured";
      readonly subject: BenchSubject;
      readonly facts: SubjectFacts;
      readonly rounds: readonly RoundTimes[];
    }
  | { readonly kind: "refused"; readonly subject: BenchSubject; readonly code: string; readonly reason: string };

/**
 * Measures all subjects with one setting. A subject that cannot run with it is refused with a reason. Throws
 * `bench/registration` when a registered library did not take, which is never a matter of taste.
 */
export async function runBench(
  subjects: readonly BenchSubject[],
  settings: BenchSettings,
  onProgress: (message: string) => void = () => undefined,
): Promise<SubjectResult[]> {
  const running: { readonly worker: Worker; readonly facts: SubjectFacts; readonly rounds: RoundTimes[] }[] = [];
  const results: (SubjectResult | null)[] = [];
  try {
    for (const subject of subjects) {
      onProgress(`opening ${subject.name}`);
      const worker = new Worker();
      const answer = await worker.ask({ kind: "open", subject, settings });
      if (answer.kind === "opened") {
        running.push({ worker, facts: answer.facts, rounds: [] });
        results.push(null);
        continue;
      }
      worker.end();
      const refusal = failure(answer);
      if (refusal.code === "bench/registration") throw refusal;
      results.push({ kind: "refused", subject, code: refusal.code, reason: refusal.message });
    }
    for (let round = 1; round <= settings.rounds; round++) {
      onProgress(`round ${round} of ${settings.rounds}`);
      for (const { worker, rounds } of running) {
        const answer = await worker.ask({ kind: "round" });
        if (answer.kind !== "timed") throw failure(answer);
        rounds.push(answer.times);
      }
    }
  } finally {
    for (const { worker } of running) worker.end();
  }
  const measured = running.values();
  return results.map((result, i) => {
    const subject = subjects[i];
    if (result !== null || subject === undefined) return result ?? bug("a result without a subject");
    const { facts, rounds } = measured.next().value ?? bug("a subject without a process");
    return { kind: "measured", subject, facts, rounds };
  });
}

function failure(answer: WorkerAnswer): MambacError {
  if (answer.kind !== "failed") return bug(`the process of a subject answered '${answer.kind}' out of turn`);
  if (answer.code === null) return bug(answer.message);
  return new MambacError(answer.code, answer.message, answer.exitCode);
}

function bug(message: string): never {
  throw new InvariantError(message);
}

/** A child process that answers one request at a time. */
class Worker {
  readonly #child: ChildProcess;

  constructor() {
    const extension = extname(fileURLToPath(import.meta.url));
    const file = new URL(`./bench-worker${extension}`, import.meta.url);
    // From sources the child needs the loader too, whatever started this process.
    const execArgv = extension === ".ts" ? ["--import", import.meta.resolve("tsx")] : [];
    this.#child = fork(file, [], { execArgv, stdio: ["ignore", "ignore", "inherit", "ipc"] });
  }

  async ask(request: WorkerRequest): Promise<WorkerAnswer> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        this.#child.off("message", onMessage).off("exit", onExit).off("error", onError);
      };
      const onMessage = (answer: WorkerAnswer): void => {
        done();
        resolve(answer);
      };
      const onError = (cause: Error): void => {
        done();
        reject(cause);
      };
      const onExit = (code: number | null, signal: string | null): void => {
        done();
        reject(new MambacError("bench/died", `the process of a subject ended with ${signal ?? `exit code ${code}`}`));
      };
      this.#child.on("message", onMessage).on("exit", onExit).on("error", onError);
      this.#child.send(request);
    });
  }

  end(): void {
    this.#child.kill();
  }
}
