#!/usr/bin/env node
/** The `mambac` program: signals, pipes and the exit code; commands are in `command-line.ts`. */

import { EXIT, fileProblem } from "../src/index.js";
import { main } from "./command-line.js";

// Unfinished output files are removed on the way out.
process.on("SIGINT", () => process.exit(EXIT.interrupted));

// A reader such as `head` that has seen enough is no error.
process.stdout.on("error", (cause: NodeJS.ErrnoException) => {
  if (cause.code === "EPIPE") process.exit(EXIT.ok);
  process.stderr.write(`mambac: cannot write to the standard output: ${fileProblem(cause)}\n`);
  process.exit(EXIT.usage);
});

process.exitCode = await main(process.argv.slice(2), {
  out: (text) => process.stdout.write(text),
  err: (text) => process.stderr.write(text),
});
