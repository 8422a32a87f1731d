import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readModel } from "../../src/onnx/read.js";
import { writeModel } from "../../src/onnx/write.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";
import { VISION_KINDS, visionModel } from "../support/mamba-graphs/vision.js";
import { DEFAULT_SIZES, DEFAULT_SPELLING } from "../support/mamba-graphs.js";

const root = mkdtempSync(join(tmpdir(), "mambac-picture-recipes-"));
afterAll(() => rmSync(root, { recursive: true }));

/** An array [count, 3, 12, 12] as NumPy writes it. */
function pictures(name: string, count: number, descr: string = "<f4", side: number = 12): string {
  const path = join(root, name);
  const header = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${count}, 3, 12, ${side}), }`.padEnd(117);
  const data = Float32Array.from({ length: count * 36 * side }, (_, at) => Math.sin(at * at));
  const head = Buffer.from(`\x93NUMPY\x01\x00v\x00${header}\n`, "latin1");
  writeFileSync(path, Buffer.concat([head, Buffer.from(data.buffer)]));
  return path;
}

function recipe(name: string, text: string): string {
  const path = join(root, `${name}.yaml`);
  writeFileSync(path, `name: ${name}\n${text}`);
  return path;
}

async function difference(out: string, source: string): Promise<{ readonly relative: number; readonly rms: number }> {
  const result = await mambac("verify", out, "--against", source, "--library", "none", "--json", "--quiet");
  const [check] = documentIn(result)["checks"] as readonly { difference: { relative: number; rms: number } }[];
  if (check === undefined) throw new Error("nothing was checked");
  return check.difference;
}

describe("exact transforms leave what comes out as it is", () => {
  for (const kind of VISION_KINDS) {
    test(kind, async () => {
      const source = join(root, `${kind}.onnx`);
      const spelling = { ...DEFAULT_SPELLING, gateNorm: "after" } as const;
      const options = { kind, side: 4, norm: "rms" } as const;
      await writeModel(visionModel({ ...DEFAULT_SIZES.mamba1, heads: 12 }, spelling, options, 3), source);
      const transforms = {
        smoothed: "smooth: {alpha: 0.5, roles: [in_proj, x_proj, dt_proj, out_proj]}\n",
        rotated: "rotate: {output: true, dt: hadamard}\n",
        both: "smooth: {alpha: 0.5, roles: [in_proj, out_proj]}\nrotate: {output: true}\n",
      };
      for (const [name, text] of Object.entries(transforms)) {
        const out = join(root, `${kind}-${name}.onnx`);
        const flags = ["--recipe", recipe(name, text), "--calib", "random", "--num-samples", "6", "-q"];
        expect((await mambac("compile", source, "-o", out, ...flags)).code, name).toBe(0);
        const changed = readModel(out).model.graph.initializers;
        expect([...changed.keys()], name).not.toEqual([...readModel(source).model.graph.initializers.keys()]);
        expect((await difference(out, source)).relative, name).toBeLessThan(1e-4);
      }
    });
  }
});

describe("projections of pictures run on integers", () => {
  const sources: readonly (readonly [string, number, number, number])[] = [
    ["vim_chunks", 8, 0, 5],
    ["vmamba_chunks", 4, 4, 1],
    ["mambavision_steps", 6, 0, 3],
  ];
  test.each(sources)("%s", async (name, projections, einsums, gemms) => {
    const out = join(root, `${name}.onnx`);
    const flags = ["--recipe", "smoothquant-w8a8", "--calib", pictures("pictures.npy", 16)];
    const result = await mambac("compile", fixture(`pictures/${name}.onnx`), "-o", out, ...flags, "--json");
    expect(result.code).toBe(0);
    const document = documentIn(result)["kernels"];
    expect(document).toMatchObject({ quantized: projections, kernels: { MatMulIntegerToFloat: projections } });
    const { float } = document as { readonly float: readonly { readonly node: string; readonly why: string }[] };
    const because = (reason: RegExp): number => float.filter(({ why }) => reason.test(why)).length;
    expect([because(/several weights at once/), because(/makes Gemm of it/)]).toEqual([einsums, gemms]);
    expect(float).toHaveLength(einsums + gemms);
    const { rms } = await difference(out, fixture(`pictures/${name}.onnx`));
    expect(rms).toBeGreaterThan(1e-4);
    expect(rms).toBeLessThan(0.3);
  });

  test("the same pictures give the same bytes, others give others", async () => {
    const bytes = async (data: string): Promise<string> => {
      const out = join(root, "again.onnx");
      const flags = ["--recipe", "naive-w8a8", "--calib", data, "-q"];
      expect((await mambac("compile", fixture("pictures/vmamba_chunks.onnx"), "-o", out, ...flags)).code).toBe(0);
      const { initializers } = readModel(out).model.graph;
      return [...initializers].map(([name, tensor]) => `${name} ${Buffer.from(tensor.bytes()).toString("hex")}`).join();
    };
    const first = await bytes(pictures("twelve.npy", 12));
    expect(await bytes(pictures("twelve.npy", 12))).toBe(first);
    expect(await bytes(pictures("three.npy", 3))).not.toBe(first);
  });
});

test("a table of pictures gives the bytes that the pictures give", async () => {
  const source = fixture("pictures/vim_chunks.onnx");
  const [data, table] = [pictures("table.npy", 8), join(root, "table.json")];
  const made = await mambac("calibrate", source, "--data", data, "--second-moments", "-o", table);
  expect(made.code, made.err).toBe(0);
  expect(made.out).toMatch(/^data +8 items, seed 0/m);
  const bytes = async (name: string, ...flags: string[]): Promise<Buffer> => {
    const out = join(root, name);
    const result = await mambac("compile", source, "-o", out, "--recipe", "gptq-w4a16", "-q", ...flags);
    expect(result.code, result.err).toBe(0);
    return readFileSync(out);
  };
  const [tabled, given] = [
    await bytes("tabled.onnx", "--calib-table", table),
    await bytes("given.onnx", "--calib", data),
  ];
  expect(tabled.equals(given)).toBe(true);
});

describe("data that are no pictures of the model", () => {
  const cases: readonly (readonly [string, () => string, RegExp])[] = [
    ["another size", () => pictures("wide.npy", 4, "<f4", 10), /the model reads float32 \[count, 3, 12, 12\]/],
    ["another type", () => pictures("whole.npy", 4, "<i4"), /holds <i4 .* the model reads float32/],
    ["text", () => recipe("text", "some words"), /is no \.npy array/],
    ["nothing", () => pictures("none.npy", 0), /there is not one item/],
  ];
  test.each(cases)("%s", async (_name, data, message) => {
    const out = join(root, "refused.onnx");
    const flags = ["--recipe", "naive-w8a8", "--calib", data()];
    const result = await mambac("compile", fixture("pictures/vmamba_chunks.onnx"), "-o", out, ...flags);
    expect(result.code).toBe(5);
    expect(result.err).toMatch(message);
  });

  test.each([
    ["quamba2-w4ax", []],
    ["auto", ["--max-loss", "1%"]],
  ])("the recipe %s, which measures, is refused with a reason", async (name, more) => {
    const out = join(root, "refused.onnx");
    const flags = ["--recipe", name, "--calib", pictures("search.npy", 8), ...more];
    const result = await mambac("compile", fixture("pictures/vmamba_chunks.onnx"), "-o", out, ...flags);
    expect(result.code).toBe(5);
    expect(result.err).toMatch(/this model reads no tokens/);
  });
});
