import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { fixture } from "../support/fixture-models.js";
import { fuzzRead } from "../support/fuzz-read.js";

test("300 damaged files are read or refused, and nothing is written", () => {
  const names = [
    "forms/mamba2_linear_attention",
    "forms/mamba_scripted_loop",
    "forms/mamba_torchscript_static",
    "hf/mamba/decode",
  ];
  const files = names.map((name) => new Uint8Array(readFileSync(fixture(`${name}.onnx`))));
  const folder = mkdtempSync(join(tmpdir(), "mambac-fuzz-"));
  const outcomes = new Set<string>();
  for (let seed = 1; seed <= 300; seed++) outcomes.add(fuzzRead(files, seed, folder));
  expect(readdirSync(folder)).toEqual([]);
  rmSync(folder, { recursive: true });
  // Harmless damage, broken wire format, wrong sizes and broken structure must all have come up.
  for (const outcome of ["read", "onnx/malformed", "onnx/tensor-size", "onnx/invalid"])
    expect(outcomes).toContain(outcome);
});
