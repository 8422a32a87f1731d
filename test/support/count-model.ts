/**
 * A language model one can compute by heart: logits are how often each token was seen so far.
 *
 * Its one operator, com.mambac::CountTokens, is a function in the model; a library with a kernel of that name can be
 * compiled where there is a C++ compiler.
 */

import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GraphBuilder, makeFunction, typed } from "../../src/ir/builder.js";
import { type Model, makeGraph, makeModel, makeNode } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import type { Dim } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";

export interface CountModelOptions {
  readonly vocabulary?: number;
  readonly batch?: Dim;
  readonly length?: Dim;
  readonly pastName?: string;
  readonly presentName?: string;
  readonly metadata?: ReadonlyMap<string, string>;
}

/** Input `input_ids`, state `past_counts` -> `present_counts`, output `logits` (names can be changed). */
export function countModel(options: CountModelOptions = {}): Model {
  const { vocabulary = 8, batch = "batch", length = "length" } = options;
  const { pastName = "past_counts", presentName = "present_counts" } = options;
  const body = new GraphBuilder("");
  const hot = body.op("OneHot", ["ids", body.int(vocabulary), body.constant(f32Tensor([2], [0, 1]))], { axis: -1 });
  const sums = body.op("CumSum", [hot, body.int(1)]);
  body.op("Add", [sums, body.op("Unsqueeze", ["past", body.ints([1])])], {}, "logits");
  body.op(
    "Squeeze",
    [body.op("Slice", ["logits", ...[-1, 2 ** 31 - 1, 1].map((v) => body.ints([v]))]), body.ints([1])],
    {},
    "present",
  );
  return makeModel(
    makeGraph({
      name: "count",
      inputs: [typed("input_ids", "i64", [batch, length]), typed(pastName, "f32", [batch, vocabulary])],
      outputs: [typed("logits", "f32", [batch, length, vocabulary]), typed(presentName, "f32", [batch, vocabulary])],
      nodes: [
        makeNode("CountTokens", ["input_ids", pastName], ["logits", presentName], new Map(), { domain: "com.mambac" }),
      ],
    }),
    {
      opsets: new Map([
        ["", 21],
        ["com.mambac", 1],
      ]),
      functions: [
        makeFunction(
          "com.mambac",
          "CountTokens",
          { inputs: ["ids", "past"], outputs: ["logits", "present"], attributes: [] },
          body.nodes,
          new Map([["", 21]]),
          "",
        ),
      ],
      metadata: options.metadata ?? new Map(),
    },
  );
}

const folder: string = mkdtempSync(join(tmpdir(), "mambac-count-"));
process.once("exit", () => rmSync(folder, { recursive: true, force: true }));

let files = 0;

/** Path of a file with the model. */
export function countModelFile(options: CountModelOptions = {}): string {
  files += 1;
  const path = join(folder, `count-${files}.onnx`);
  writeFileSync(path, encodeModel(countModel(options)));
  return path;
}

/** A fresh folder that is removed when the process ends. */
export function scratchFolder(): string {
  return mkdtempSync(join(folder, "scratch-"));
}

/** Is there a compiler for `countLibrary`? */
export const hasCompiler: boolean =
  process.platform === "linux" && spawnSync("g++", ["--version"], { stdio: "ignore" }).status === 0;

/**
 * Compiles the kernel: its logits are 1000 larger than the function's, 2000 where it found its state in place.
 * `wrong-type` declares other input types, as a library of another version might.
 */
export function countLibrary(variant: "right" | "wrong-type" = "right"): string {
  const source = join(import.meta.dirname, "..", "fixtures", "ops", "count_tokens.cc");
  const path = join(folder, `libcount-${variant}.so`);
  const flags = variant === "right" ? [] : ["-DWRONG_TYPE"];
  if (!existsSync(path)) execFileSync("g++", ["-std=c++17", "-O1", "-fPIC", "-shared", ...flags, source, "-o", path]);
  return path;
}
