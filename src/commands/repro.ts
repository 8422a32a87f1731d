/** What a bug report needs: the graph before the failing pass as text, the options, the trace, and one command line. */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Model } from "../ir/graph.js";
import { formatModel } from "../ir/text.js";

export interface Incident {
  /** The pass that failed and what it was given; null when the failure was between passes. */
  readonly failed: { readonly pass: string; readonly before: Model } | null;
  readonly cause: unknown;
  readonly options: { readonly commandLine: readonly string[] };
  readonly version: string;
}

/**
 * Writes the files and gives a sentence about it; a folder that cannot be written is told in that sentence, since the
 * failure itself matters more. Weights appear as hashes and a few values.
 */
export function writeRepro(folder: string, incident: Incident): string {
  const { failed, cause, options, version } = incident;
  const trace = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause);
  const platform = `${process.platform} ${process.arch}, Node ${process.version}, mambac ${version}`;
  const files: [name: string, text: string][] = [
    ["command.txt", `mambac ${options.commandLine.map(quoted).join(" ")}\n`],
    ["options.json", `${JSON.stringify(options, null, 2)}\n`],
    ["trace.txt", `${platform}\n${failed === null ? "" : `pass ${failed.pass}\n`}${trace}\n`],
  ];
  if (failed !== null) files.push([`before-${failed.pass}.irtxt`, formatModel(failed.before, { comments: true })]);
  try {
    mkdirSync(folder, { recursive: true });
    for (const [name, text] of files) writeFileSync(join(folder, name), text);
    return `wrote ${files.map(([name]) => join(folder, name)).join(", ")}; weights are not in them`;
  } catch (failure) {
    return `cannot write what a bug report needs: ${failure instanceof Error ? failure.message : String(failure)}`;
  }
}

function quoted(argument: string): string {
  return /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`;
}
