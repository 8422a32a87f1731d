import {
  linkSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { readModel, readModelBytes } from "../../src/onnx/read.js";
import { field, intField, tinyModel } from "../support/wire.js";

const root = mkdtempSync(join(tmpdir(), "mambac-external-"));
afterAll(() => rmSync(root, { recursive: true }));

let folder = "";
let count = 0;
beforeEach(() => {
  count += 1;
  folder = join(root, String(count));
  mkdirSync(folder);
});

/** An f32[2] initialiser "w" with these external data entries. */
function external(entries: Readonly<Record<string, string>>, more: readonly number[] = []): Uint8Array {
  const data = Object.entries(entries).flatMap(([key, value]) => field(13, [...field(1, key), ...field(2, value)]));
  return tinyModel({
    graph: field(5, [...intField(1, 2), ...intField(2, 1), ...field(8, "w"), ...data, ...intField(14, 1), ...more]),
  });
}

function save(bytes: Uint8Array): string {
  const path = join(folder, "model.onnx");
  writeFileSync(path, bytes);
  return path;
}

function floats(...values: number[]): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer);
}

function read(entries: Readonly<Record<string, string>>): number[] {
  const tensor = readModel(save(external(entries))).model.graph.initializers.get("w");
  if (tensor === undefined) throw new Error("no initialiser w");
  expect(tensor.residence).toBe("file");
  return [...new Float32Array(tensor.bytes().slice().buffer)];
}

describe("reads", () => {
  test("a whole file, a slice of one, and one in a folder below", () => {
    writeFileSync(join(folder, "w.bin"), floats(1, 2));
    expect(read({ location: "w.bin" })).toEqual([1, 2]);
    writeFileSync(join(folder, "w.bin"), floats(1, 2, 3, 4));
    expect(read({ location: "w.bin", offset: "4", length: "8" })).toEqual([2, 3]);
    mkdirSync(join(folder, "sub"));
    writeFileSync(join(folder, "sub", "w.bin"), floats(5, 6));
    expect(read({ location: "sub/w.bin" })).toEqual([5, 6]);
    expect(read({ location: "./sub/w.bin" })).toEqual([5, 6]);
  });

  test("slices without the rest", () => {
    writeFileSync(join(folder, "w.bin"), floats(1, 2));
    const tensor = readModel(save(external({ location: "w.bin" }))).model.graph.initializers.get("w");
    expect([...(tensor?.slice(4, 8) ?? [])]).toEqual([...floats(2)]);
  });

  test("offsets beyond 2^32", () => {
    const path = join(folder, "huge.bin");
    const offset = 2 ** 33 + 64;
    writeFileSync(path, "");
    truncateSync(path, offset + 8);
    expect(read({ location: "huge.bin", offset: String(offset), length: "8" })).toEqual([0, 0]);
    expect(() => read({ location: "huge.bin", offset: String(offset + 1) })).toThrow(/has only 8589934664 bytes/);
    rmSync(path);
  });

  test("links that stay inside, and hard links", () => {
    writeFileSync(join(folder, "w.bin"), floats(1, 2));
    symlinkSync("w.bin", join(folder, "link.bin"));
    linkSync(join(folder, "w.bin"), join(folder, "hard.bin"));
    expect(read({ location: "link.bin" })).toEqual([1, 2]);
    expect(read({ location: "hard.bin" })).toEqual([1, 2]);
  });

  test("a checksum and unknown entries are told", () => {
    writeFileSync(join(folder, "w.bin"), floats(1, 2));
    const { warnings } = readModel(save(external({ location: "w.bin", checksum: "abc", color: "red" })));
    expect(warnings).toEqual([
      "external data have a checksum, which is not checked and not kept",
      'external data have an unknown entry "color"; dropped',
    ]);
  });
});

describe("refuses, naming tensor and file,", () => {
  const label = /initialiser "w" of the main graph/;

  test.each([
    "../w.bin",
    "a/../../w.bin",
    "/etc/passwd",
    "C:\\w.bin",
    "C:w.bin",
    "\\\\host\\w.bin",
    "a\\..\\w.bin",
    "",
    "w\0.bin",
  ])("the location %j", (location) => {
    writeFileSync(join(root, "w.bin"), floats(1, 2));
    const attempt = (): unknown => read({ location });
    expect(attempt).toThrow(expect.objectContaining({ code: "onnx/external-path", exitCode: 2 }));
    expect(attempt).toThrow(label);
    expect(attempt).toThrow(JSON.stringify(location));
  });

  test("a link to a file outside", () => {
    writeFileSync(join(root, "outside.bin"), floats(1, 2));
    symlinkSync(join(root, "outside.bin"), join(folder, "w.bin"));
    expect(() => read({ location: "w.bin" })).toThrow(expect.objectContaining({ code: "onnx/external-path" }));
    expect(() => read({ location: "w.bin" })).toThrow(/w\.bin is a link to a file outside/);
  });

  test("a folder that is a link to outside", () => {
    mkdirSync(join(folder, "..", "elsewhere"), { recursive: true });
    writeFileSync(join(root, "elsewhere", "w.bin"), floats(1, 2));
    symlinkSync(join(root, "elsewhere"), join(folder, "sub"));
    expect(() => read({ location: "sub/w.bin" })).toThrow(expect.objectContaining({ code: "onnx/external-path" }));
  });

  test("a folder whose name only starts like the model's", () => {
    mkdirSync(`${folder}-twin`);
    writeFileSync(join(`${folder}-twin`, "w.bin"), floats(1, 2));
    symlinkSync(join(`${folder}-twin`, "w.bin"), join(folder, "w.bin"));
    expect(() => read({ location: "w.bin" })).toThrow(expect.objectContaining({ code: "onnx/external-path" }));
  });

  test.each<[string, Readonly<Record<string, string>>, RegExp]>([
    ["a missing file", { location: "none.bin" }, /"w".*none\.bin, which is not beside the model/],
    ["a short file", { location: "short.bin" }, /"w".*bytes 0 to 8 of short\.bin, which has only 4 bytes/],
    ["an offset past the end", { location: "short.bin", offset: "100" }, /bytes 100 to 108/],
    ["a folder", { location: "." }, /./],
    ["no location", { offset: "0" }, /does not say which file/],
    ["a negative offset", { location: "short.bin", offset: "-4" }, /offset of its data is "-4"/],
    ["an offset that is no number", { location: "short.bin", offset: "1e3" }, /"1e3"/],
    ["a gigantic offset", { location: "short.bin", offset: "99999999999999999999" }, /not a byte count/],
    ["another length", { location: "short.bin", length: "4" }, /f32\[2\] needs 8 bytes but has 4 bytes in short\.bin/],
  ])("%s", (_, entries, message) => {
    writeFileSync(join(folder, "short.bin"), floats(1));
    expect(() => read(entries)).toThrow(message);
    expect(() => read(entries)).toThrow(label);
  });

  test("external strings, and external beside inline data", () => {
    writeFileSync(join(folder, "w.bin"), floats(1, 2));
    const both = external({ location: "w.bin" }, field(9, floats(1, 2)));
    expect(() => readModel(save(both))).toThrow(/both raw_data and external data/);
    const entry = field(13, [...field(1, "location"), ...field(2, "w.bin")]);
    const strings = tinyModel({ graph: field(5, [...intField(2, 8), ...field(8, "w"), ...entry, ...intField(14, 1)]) });
    expect(() => readModel(save(strings))).toThrow(/strings cannot be stored externally/);
  });

  test("a model given as bytes", () => {
    writeFileSync(join(folder, "w.bin"), floats(1, 2));
    const bytes = external({ location: "w.bin" });
    expect(() => readModelBytes(bytes)).toThrow(/given as bytes/);
    expect(readModelBytes(bytes, folder).model.graph.initializers.get("w")?.byteLength).toBe(8);
  });

  test("a file that changes after the model was read", () => {
    const path = join(folder, "w.bin");
    writeFileSync(path, floats(1, 2));
    const tensor = readModel(save(external({ location: "w.bin" }))).model.graph.initializers.get("w");
    writeFileSync(path, floats(3));
    expect(() => tensor?.bytes()).toThrow(/changed while it was in use/);
    writeFileSync(path, floats(3, 4));
    utimesSync(path, 1, 1);
    expect(() => tensor?.bytes()).toThrow(/changed while it was in use/);
    rmSync(path);
    expect(() => tensor?.bytes()).toThrow(/"w".*cannot read w\.bin/);
  });
});
