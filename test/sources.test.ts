import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { defaultOutput, identifySource, sourceFiles } from "../src/sources.js";
import { fixture } from "./support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-sources-"));
afterAll(() => rmSync(root, { recursive: true }));

const PREFILL = fixture("hf/mamba2/prefill.onnx");
const DECODE = fixture("hf/mamba2/decode.onnx");

function folderWith(files: Readonly<Record<string, string | null>>): string {
  const folder = mkdtempSync(join(root, "f-"));
  for (const [name, source] of Object.entries(files)) {
    if (source === null) writeFileSync(join(folder, name), "");
    else copyFileSync(source, join(folder, name));
  }
  return folder;
}

test("one file is the model, whatever it is called", () => {
  expect(sourceFiles([DECODE])).toEqual([{ path: DECODE, role: "model" }]);
});

test("a pair comes prefill first, by name", () => {
  const pair = [
    { path: PREFILL, role: "prefill" },
    { path: DECODE, role: "decode" },
  ];
  expect(sourceFiles([PREFILL, DECODE])).toEqual(pair);
  expect(sourceFiles([DECODE, PREFILL])).toEqual(pair);
});

test("a pair without telling names is told apart by who takes states", () => {
  const folder = folderWith({ "a.onnx": DECODE, "b.onnx": PREFILL });
  const [a, b] = [join(folder, "a.onnx"), join(folder, "b.onnx")];
  for (const inputs of [
    [a, b],
    [b, a],
  ])
    expect(sourceFiles(inputs).map(({ path }) => path)).toEqual([b, a]);
});

test("a folder gives its pair or its only graph; compiled files do not count", () => {
  const pair = folderWith({
    "x_prefill.onnx": PREFILL,
    "x_decode.onnx": DECODE,
    "extra.onnx": null,
    "x.mambac.onnx": null,
  });
  expect(sourceFiles([pair]).map(({ path, role }) => [basename(path), role])).toEqual([
    ["x_prefill.onnx", "prefill"],
    ["x_decode.onnx", "decode"],
  ]);
  const one = folderWith({ "model.onnx": PREFILL, "model.mambac.onnx": null, "model.mambac.onnx.data": null });
  expect(sourceFiles([one])).toEqual([{ path: join(one, "model.onnx"), role: "model" }]);
});

test("what is no source is refused", () => {
  expect(() => sourceFiles([])).toThrow("no input file");
  expect(() => sourceFiles([PREFILL, DECODE, PREFILL])).toThrow("got 3 files");
  expect(() => sourceFiles([folderWith({})])).toThrow("holds no .onnx file");
  expect(() => sourceFiles([folderWith({ "a.onnx": null, "b.onnx": null })])).toThrow("holds 2 graphs");
  expect(() => identifySource({ path: join(root, "absent.onnx"), role: "model" })).toThrow("cannot read");
});

test("a source is identified by its bytes", () => {
  const bytes = readFileSync(PREFILL);
  expect(identifySource({ path: PREFILL, role: "model" })).toEqual({
    path: PREFILL,
    role: "model",
    sha256: createHash("sha256").update(bytes).digest("hex"),
    bytes: bytes.length,
  });
});

test("the default output lies beside the source and is not named for one half of a pair", () => {
  const name = (...files: string[]): string => {
    const folder = join(root, "out");
    mkdirSync(folder, { recursive: true });
    const [first, second] = files.map((file) => join(folder, file));
    const output = defaultOutput(
      second === undefined
        ? [{ path: first ?? "", role: "model" }]
        : [
            { path: first ?? "", role: "prefill" },
            { path: second, role: "decode" },
          ],
    );
    expect(output.startsWith(folder)).toBe(true);
    return basename(output);
  };
  expect(name("tiny.onnx")).toBe("tiny.mambac.onnx");
  expect(name("prefill.onnx")).toBe("prefill.mambac.onnx");
  expect(name("prefill.onnx", "decode.onnx")).toBe("model.mambac.onnx");
  expect(name("tiny-prefill.onnx", "tiny-decode.onnx")).toBe("tiny.mambac.onnx");
  expect(name("prefill_tiny.onnx", "decode_tiny.onnx")).toBe("tiny.mambac.onnx");
});
