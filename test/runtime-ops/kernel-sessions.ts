/** The op library as the kernel tests use it: built when this file is loaded, its sessions closed when a test file ends. */

import { afterAll } from "vitest";
import { buildOps } from "../../scripts/build-ops.js";
import type { Tensor } from "../../src/ir/tensor.js";
import { type NativeSession, openNativeSession } from "../../src/run/native-session.js";

const built = await buildOps({ tests: true });
if (built.kind === "unavailable") process.stderr.write(`The kernels are not tested: ${built.reason}\n`);

/** False where there is no compiler; the paths are empty then. */
export const isBuilt: boolean = built.kind === "built";
export const library: string = built.kind === "built" ? built.library : "";
export const tests: string = built.kind === "built" ? built.tests : "";

const sessions: NativeSession[] = [];
afterAll(() => {
  for (const session of sessions) session.close();
});

/** A session with the library. */
export async function open(model: Uint8Array, threads: number = 1, profilePrefix?: string): Promise<NativeSession> {
  const options = profilePrefix === undefined ? { library, threads } : { library, threads, profilePrefix };
  const session = await openNativeSession(model, options);
  sessions.push(session);
  return session;
}

/** An output by its name. */
export function output(outputs: ReadonlyMap<string, Tensor>, name: string): Tensor {
  const tensor = outputs.get(name);
  if (tensor === undefined) throw new Error(`no output ${name}`);
  return tensor;
}
