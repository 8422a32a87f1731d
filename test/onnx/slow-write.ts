/**
 * A program that writes a large model slowly, for tests that kill it: `slow-write.ts PATH [own-handler]`. Prints a dot
 * for each tensor it writes.
 */

import { writeSync } from "node:fs";
import { makeGraph, makeModel, makeValue } from "../../src/ir/graph.js";
import { tensorFromSource } from "../../src/ir/tensor.js";
import { writeModel } from "../../src/onnx/write.js";

const TENSORS = 200;
const BYTES = 64 * 1024;

const [path = "", mode = ""] = process.argv.slice(2);

const slow = {
  read(_: number, length: number): Uint8Array {
    writeSync(1, ".");
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
    return new Uint8Array(length);
  },
};

if (mode === "own-handler") process.on("SIGTERM", () => process.exit(130));

const initializers = new Map(
  Array.from({ length: TENSORS }, (_, i) => [`w${i}`, tensorFromSource("u8", [BYTES], slow, i * BYTES, "lazy")]),
);

await writeModel(
  makeModel(
    makeGraph({
      name: "slow",
      inputs: [makeValue("x", null)],
      outputs: [makeValue("x", null)],
      nodes: [],
      initializers,
    }),
    { opsets: new Map([["", 20]]) },
  ),
  path,
);
