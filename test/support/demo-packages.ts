/** The demo, compiled and packaged, for tests of what lies in packages. */

import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mambac } from "./command.js";
import { DEMO } from "./state-quality.js";

/** A folder of its own; whoever asks for it removes it. */
export function scratch(): string {
  return mkdtempSync(join(tmpdir(), "mambac-package-"));
}

/** Runs a command that must succeed. */
export async function done(...argv: string[]): Promise<string> {
  const result = await mambac(...argv);
  if (result.code !== 0) throw new Error(`mambac ${argv.join(" ")}: ${result.err}`);
  return result.err;
}

/** The demo, compiled as `<name>.onnx` in a folder; gives its path. */
export async function compileDemo(folder: string, name: string, ...flags: string[]): Promise<string> {
  const path = join(folder, `${name}.onnx`);
  await done("compile", join(DEMO, "prefill.onnx"), "-o", path, "-q", ...flags);
  return path;
}
