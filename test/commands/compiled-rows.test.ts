import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { compiledRows, isCompiled } from "../../src/commands/compiled-rows.js";
import { readModel } from "../../src/onnx/read.js";
import { fixture } from "../support/fixture-models.js";
import { compileWith } from "../support/fixture-row.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-rows-"));
afterAll(() => rmSync(folder, { recursive: true }));

test.each(["hf/mamba", "hf/mamba2", "hf/falcon_h1"])("%s reads back as it was compiled", async (name) => {
  for (const format of ["f32", "f16", "h8", "h4"] as const) {
    const out = join(folder, "out.onnx");
    const report = await compileWith([fixture(name)], out, { format, scale: "dsq", requantize: "call" });
    const { model } = readModel(out);
    expect(isCompiled(model)).toBe(true);
    const known = (row: { readonly layer: string }): string => row.layer;
    const expected = report.rows.filter((row) => row.kind !== "attention");
    const actual = compiledRows(model);
    expect(actual.map(known).sort()).toEqual(expected.map(known).sort());
    for (const row of expected) {
      const found = actual.find((other) => other.layer === row.layer && other.kind === row.kind);
      expect(found).toMatchObject({
        sizes: row.sizes,
        bytesBefore: row.bytesBefore,
        bytesAfter: row.bytesAfter,
        states: row.states.map(({ past, present }) => ({ past, present })),
      });
    }
  }
});

test("sources are not compiled files", () => {
  expect(isCompiled(readModel(fixture("hf/mamba2/prefill.onnx")).model)).toBe(false);
});
