/** Runs `mambac` in this process, or as a process of its own. */

import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { main } from "../../bin/command-line.js";

export interface CommandResult {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** In this process: fast, but without signals. */
export async function mambac(...argv: string[]): Promise<CommandResult> {
  let [out, err] = ["", ""];
  const code = await main(argv, {
    out: (text) => {
      out += text;
    },
    err: (text) => {
      err += text;
    },
  });
  return { code, out, err };
}

/** The one JSON document a command printed; fails when there is more or less. */
export function documentIn(result: CommandResult): Record<string, unknown> {
  const value: unknown = JSON.parse(result.out);
  if (typeof value !== "object" || value === null) throw new Error(`not a document: ${result.out}`);
  return { ...value };
}

export interface SpawnOptions {
  /** Sends SIGINT once stderr holds this text. */
  readonly interruptAfter?: string;
  /** Largest file the process may write, in bytes; a stand-in for a full disk. */
  readonly fileLimit?: number;
  readonly cwd?: string;
  /** Instead of this process's own; a variable that is undefined is not set. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** A file that takes the results. */
  readonly stdout?: string;
}

const ENTRY: string = join(import.meta.dirname, "..", "..", "bin", "mambac.ts");

/** As a process of its own. */
export function spawnMambac(argv: readonly string[], options: SpawnOptions = {}): Promise<CommandResult> {
  const node = [process.execPath, "--import", import.meta.resolve("tsx"), ENTRY, ...argv];
  const [file = "", ...rest] =
    options.fileLimit === undefined
      ? node
      : ["sh", "-c", `ulimit -f ${Math.ceil(options.fileLimit / 512)}; exec "$@"`, "sh", ...node];
  const sink = options.stdout === undefined ? "pipe" : openSync(options.stdout, "w");
  const env = { ...process.env, ...options.env };
  const child = spawn(file, rest, { stdio: ["ignore", sink, "pipe"], cwd: options.cwd, env });
  if (typeof sink === "number") closeSync(sink);
  let [out, err] = ["", ""];
  let interrupted = false;
  child.stdout?.on("data", (chunk: Buffer) => {
    out += chunk.toString();
  });
  child.stderr?.on("data", (chunk: Buffer) => {
    err += chunk.toString();
    if (options.interruptAfter === undefined || interrupted || !err.includes(options.interruptAfter)) return;
    interrupted = true;
    child.kill("SIGINT");
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, out, err }));
  });
}
