/** The examples that use the op library give the text mambac gives, where their toolchains are installed. */

import { execFileSync, spawnSync } from "node:child_process";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { buildOps } from "../../scripts/build-ops.js";
import { generate } from "../../src/run/generate.js";
import { findOnnxRuntime } from "../../src/run/locate.js";
import { loadPackage } from "../../src/run/stateful.js";
import { byteTokenizer } from "../../src/run/tokenizer.js";
import { hasCompiler, scratchFolder } from "../support/count-model.js";
import { compileWith } from "../support/fixture-row.js";

const ROOT = join(import.meta.dirname, "..", "..");
const PROMPT = "And God said, Let the waters";
const built = await buildOps();
const library = built.kind === "built" ? built.library : "";
const hasPython = spawnSync("python3", ["-c", "import numpy, onnxruntime"], { stdio: "ignore" }).status === 0;
if (built.kind === "unavailable") process.stderr.write(`examples are not run: ${built.reason}\n`);
if (!hasPython) process.stderr.write("examples/python is not run: no python3 with numpy and onnxruntime\n");
if (!hasCompiler) process.stderr.write("examples/cpp is not run: no g++\n");

const folder = scratchFolder();

describe.skipIf(built.kind !== "built").each(["f32", "h8", "h4"] as const)("with a state of %s", (format) => {
  const model = join(folder, `${format}.onnx`);
  let expected = "";
  beforeAll(async () => {
    const source = join(ROOT, "examples", "demo", "prefill.onnx");
    await compileWith([source], model, { format, scale: "dsq-max", requantize: "call" });
    await using loaded = await loadPackage(model, { library });
    expect(loaded.executedOps().functions.size).toBe(0);
    const { tokens } = await generate(loaded, byteTokenizer.encode(PROMPT), { maxTokens: 40 });
    expected = `${PROMPT}${byteTokenizer.decode(tokens)}\n`;
  });

  test.skipIf(!hasPython)("examples/python/run_with_library.py", () => {
    const script = join(ROOT, "examples", "python", "run_with_library.py");
    expect(execFileSync("python3", [script, model, library, PROMPT], { encoding: "utf8" })).toBe(expected);
  });

  test.skipIf(!hasCompiler)("examples/cpp/generate.cc", () => {
    const program = join(folder, "generate");
    const source = join(ROOT, "examples", "cpp", "generate.cc");
    execFileSync("g++", ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", program, "-ldl"]);
    const run = execFileSync(program, [findOnnxRuntime(), model, library, PROMPT], { encoding: "utf8" });
    expect(run).toBe(expected);
    const failed = spawnSync(program, [findOnnxRuntime(), join(folder, "none.onnx"), library, PROMPT], {
      encoding: "utf8",
    });
    expect(failed.status).toBe(1);
    expect(failed.stderr).toMatch(/none\.onnx/);
  });
});
