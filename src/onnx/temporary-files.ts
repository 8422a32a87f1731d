/**
 * Files that must not outlive a failed or interrupted write.
 *
 * A process that dies of a signal runs no cleanup by itself, so while temporary files exist the usual signals are
 * caught, the files removed and the signal raised again. SIGKILL cannot be caught: it leaves a hidden `.tmp` file, never
 * an output file.
 */

import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { basename, dirname, join } from "node:path";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

const live = new Set<TemporaryFiles>();

function onSignal(signal: NodeJS.Signals): void {
  // With another listener the program decides what the signal means, and its exit cleans up.
  if (process.listenerCount(signal) > 1) return;
  for (const files of live) files.removeAll();
  process.off(signal, onSignal);
  process.kill(process.pid, signal);
}

function onExit(): void {
  for (const files of live) files.removeAll();
}

/** Temporary files of one write. Use with `try`/`finally { close() }`. */
export class TemporaryFiles {
  readonly #paths = new Set<string>();
  readonly #folders = new Set<string>();

  constructor() {
    if (live.size === 0) {
      for (const signal of SIGNALS) process.on(signal, onSignal);
      process.on("exit", onExit);
    }
    live.add(this);
  }

  /** A fresh path beside `target`, to be created by the caller. */
  beside(target: string): string {
    const path = join(dirname(target), `.${basename(target)}.${process.pid}.${randomBytes(6).toString("hex")}.tmp`);
    this.#paths.add(path);
    return path;
  }

  /** A new folder in `parent`, to be removed with everything in it. */
  folder(parent: string, prefix: string): string {
    const path = mkdtempSync(join(parent, prefix));
    this.#folders.add(path);
    return path;
  }

  /** A new folder beside `target`, with the rights that folders get here. */
  folderBeside(target: string): string {
    const path = this.beside(target);
    mkdirSync(path);
    this.#paths.delete(path);
    this.#folders.add(path);
    return path;
  }

  /** No longer temporary: renamed to what it was written for. */
  keep(path: string): void {
    this.#paths.delete(path);
    this.#folders.delete(path);
  }

  removeAll(): void {
    for (const path of this.#paths) removeQuietly(path, false);
    for (const path of this.#folders) removeQuietly(path, true);
    this.#paths.clear();
    this.#folders.clear();
  }

  /** Removes what is left and stops watching signals. */
  close(): void {
    this.removeAll();
    live.delete(this);
    if (live.size > 0) return;
    for (const signal of SIGNALS) process.off(signal, onSignal);
    process.off("exit", onExit);
  }
}

function removeQuietly(path: string, recursive: boolean): void {
  try {
    rmSync(path, { force: true, recursive });
  } catch {
    // The error that led here is worth more than this one.
  }
}
