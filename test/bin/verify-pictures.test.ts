import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { readModel } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-pictures-"));
afterAll(() => rmSync(root, { recursive: true }));

async function compiled(name: string, ...flags: string[]): Promise<string> {
  const out = join(root, `${name}.onnx`);
  expect((await mambac("compile", fixture(`pictures/${name}.onnx`), "-o", out, "-q", ...flags)).code).toBe(0);
  return out;
}

interface CheckDocument {
  readonly output: string;
  readonly batches: readonly number[];
  readonly difference: { readonly relative: number; readonly rms: number };
  readonly passed: boolean;
}

async function verified(out: string, name: string): Promise<{ code: number | null; check: CheckDocument }> {
  const result = await mambac("verify", out, "--against", fixture(`pictures/${name}.onnx`), "--json", "--quiet");
  const [check] = documentIn(result)["checks"] as readonly CheckDocument[];
  if (check === undefined) throw new Error("nothing was checked");
  return { code: result.code, check };
}

test.each([
  ["vim_chunks", [2]],
  ["vmamba_chunks", [2]],
  ["mambavision_steps", [1, 3]],
])("%s computes what its source computes", async (name, batches) => {
  const { code, check } = await verified(await compiled(name), name);
  expect(code).toBe(0);
  expect(check).toMatchObject({ output: "classes", batches, passed: true });
  expect(check.difference.relative).toBeLessThan(1e-4);
});

test("nothing is said to be kept between calls", async () => {
  const out = await compiled("vim_chunks", "--state", "h4");
  const { layers, totals } = documentIn(await mambac("inspect", out, "--json"));
  expect(layers).toHaveLength(8);
  for (const layer of layers as readonly object[]) expect(layer).toMatchObject({ states: [], stateBytesBefore: 0 });
  expect(totals).toMatchObject({ stateBytesBefore: 0, stateBytesAfter: 0 });
});

test("rounded weights are held to a loose limit", async () => {
  const { code, check } = await verified(await compiled("vmamba_chunks", "--recipe", "rtn-w4a16"), "vmamba_chunks");
  expect(code).toBe(0);
  expect(check.difference.relative).toBeGreaterThan(1e-3);
});

test("a broken file fails", async () => {
  const out = await compiled("mambavision_steps");
  const { model } = readModel(out);
  const { graph } = model;
  const initializers = new Map(
    [...graph.initializers].map(([name, tensor]) => [
      name,
      tensor.dtype === "f32" && tensor.shape.length === 2
        ? f32Tensor(
            tensor.shape,
            toNumbers(tensor).map((value) => value * 1.01),
          )
        : tensor,
    ]),
  );
  writeFileSync(out, encodeModel({ ...model, graph: { ...graph, initializers } }));
  const { code, check } = await verified(out, "mambavision_steps");
  expect(code).toBe(3);
  expect(check.passed).toBe(false);
});
