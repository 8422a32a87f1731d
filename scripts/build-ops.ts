/** Builds the op library: `tsx scripts/build-ops.ts [--tests] [--bench] [--sanitize]`; prints the path of what was built. */

import { fileURLToPath } from "node:url";
import { buildOps } from "../src/run/build-ops.js";

export { buildOps };

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const has = (flag: string): boolean => process.argv.includes(flag);
  const result = await buildOps({ tests: has("--tests"), bench: has("--bench"), sanitize: has("--sanitize") });
  if (result.kind === "built") {
    console.log(has("--sanitize") ? result.tests : result.library);
  } else {
    console.error(`the op library cannot be built: ${result.reason}`);
    process.exitCode = 1;
  }
}
