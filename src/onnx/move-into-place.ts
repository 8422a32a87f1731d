/** The last step of a write: files take their names, all of them or none. */

import { existsSync, renameSync, rmSync } from "node:fs";
import type { TemporaryFiles } from "./temporary-files.js";

/** A file under a temporary name, and its own. */
export interface Move {
  readonly from: string;
  readonly to: string;
}

/**
 * Renames everything and removes what is outdated, or does nothing. Synchronous, so that signal handlers run before or
 * after it, never inside.
 */
export function moveIntoPlace(moves: readonly Move[], outdated: readonly string[], temporary: TemporaryFiles): void {
  const undo: (() => void)[] = [];
  const backups: string[] = [];
  try {
    for (const to of new Set([...moves.map((move) => move.to), ...outdated])) {
      if (!existsSync(to)) continue;
      const backup = temporary.beside(to);
      temporary.keep(backup);
      renameSync(to, backup);
      backups.push(backup);
      undo.push(() => renameSync(backup, to));
    }
    for (const { from, to } of moves) {
      renameSync(from, to);
      temporary.keep(from);
      undo.push(() => rmSync(to, { force: true }));
    }
  } catch (cause) {
    for (const step of undo.toReversed()) step();
    throw cause;
  }
  for (const backup of backups) rmSync(backup, { force: true });
}
