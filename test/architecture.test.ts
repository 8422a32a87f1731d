/** The rules of the house that a compiler does not check: layers, quarantined packages, the pass registry, file sizes. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { describe, expect, test } from "vitest";
import { PASSES } from "../passes/index.js";

const ROOT = resolve(import.meta.dirname, "..");
const MAX_LINES = 500;

/** Folders and the folders each may import from, besides itself. The longest name that fits a file counts. */
const LAYERS: Readonly<Record<string, readonly string[]>> = {
  "src/support": [],
  "src/document": ["src/support"],
  "src/ir": ["src/support"],
  "src/linalg": ["src/support"],
  "src/onnx": ["src/ir", "src/support"],
  "src/quant": ["src/ir", "src/linalg", "src/support"],
  "src/ops": ["src/ir", "src/support"],
  "src/rewrite": ["src/ir", "src/linalg", "src/ops", "src/quant", "src/support"],
  "src/run": ["src/ir", "src/linalg", "src/onnx", "src/ops", "src/quant", "src/support"],
  "src/package": ["src/ir", "src/onnx", "src/run", "src/support"],
  passes: ["src/document", "src/ir", "src/linalg", "src/ops", "src/quant", "src/rewrite", "src/support"],
  src: [
    "src/commands",
    "src/ir",
    "src/linalg",
    "src/onnx",
    "src/ops",
    "src/quant",
    "src/rewrite",
    "src/run",
    "src/support",
  ],
  "src/commands": [
    "src",
    "src/ir",
    "src/linalg",
    "src/onnx",
    "src/ops",
    "src/package",
    "src/quant",
    "src/rewrite",
    "src/run",
    "src/support",
  ],
  api: ["src/index.ts", "passes/index.ts"],
  bin: ["src/index.ts", "passes/index.ts", "api/recipes.ts"],
};

/** Packages that only one file, or one folder, may import. */
const QUARANTINE: Readonly<Record<string, string>> = {
  "@huggingface/tokenizers": "src/run/tokenizer.ts",
  commander: "bin/",
  hyparquet: "src/run/dataset-parquet.ts",
  koffi: "src/run/ort-capi.ts",
  "onnxruntime-node": "src/run/session.ts",
  protobufjs: "src/onnx/proto.ts",
  yaml: "src/document/yaml.ts",
};

/** Layers that decide and never act: no files, processes or clocks. */
const WITHOUT_NODE = [
  "passes",
  "src/document",
  "src/ir",
  "src/linalg",
  "src/ops",
  "src/quant",
  "src/rewrite",
  "src/support",
];

interface SourceText {
  /** Relative to the root, with forward slashes. */
  readonly path: string;
  readonly text: string;
}

function filesUnder(folder: string): SourceText[] {
  if (!existsSync(join(ROOT, folder))) return [];
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
    .map((name) => `${folder}/${name.replaceAll("\\", "/")}`)
    .filter((path) => path.endsWith(".ts"))
    .sort()
    .map((path) => ({ path, text: readFileSync(join(ROOT, path), "utf8") }));
}

const PRODUCT = ["src", "passes", "api", "bin"].flatMap(filesUnder);
const EVERYTHING = [...PRODUCT, ...["test", "scripts"].flatMap(filesUnder)];

/** Module names in import and export statements and in dynamic imports; types count too. */
function importsOf(text: string): string[] {
  const statements = text.matchAll(
    /^(?:import|export)\b[^;]*?\bfrom\s+"([^"]+)"|^import\s+"([^"]+)"|\bimport\(\s*"([^"]+)"/gms,
  );
  return [...statements].flatMap(([, from, bare, dynamic]) => from ?? bare ?? dynamic ?? []);
}

/** Files of this repository that a file imports. */
function localImports({ path, text }: SourceText): string[] {
  return importsOf(text)
    .filter((name) => name.startsWith("."))
    .map((name) =>
      relative(ROOT, resolve(ROOT, dirname(path), name))
        .replaceAll("\\", "/")
        .replace(/\.js$/, ".ts"),
    );
}

/** `@scope/name` or `name` of a module inside a package. */
function packageOf(name: string): string {
  return name
    .split("/")
    .slice(0, name.startsWith("@") ? 2 : 1)
    .join("/");
}

function layerOf(path: string): string {
  const fitting = Object.keys(LAYERS).filter((layer) => path.startsWith(`${layer}/`));
  return fitting.sort((a, b) => b.length - a.length)[0] ?? path;
}

describe("imports", () => {
  test("are found in every spelling", () => {
    const text = [
      'import { a } from "a";',
      'import type { B } from "b";',
      'import {\n  c,\n  d,\n} from "c";',
      'import "d";',
      'export { e } from "e";',
      'const f = await import("f");',
      'type G = import("g").G;',
      "const text = `from here`;",
    ].join("\n");
    expect(importsOf(text)).toEqual(["a", "b", "c", "d", "e", "f", "g"]);
    expect(["a/b/c", "@a/b/c"].map(packageOf)).toEqual(["a", "@a/b"]);
  });

  test("follow the layers", () => {
    const broken = PRODUCT.flatMap((file) =>
      localImports(file)
        .filter((target) => {
          const [from, to] = [layerOf(file.path), layerOf(target)];
          const allowed = LAYERS[from] ?? [];
          return from !== to && !allowed.includes(to) && !allowed.includes(target);
        })
        .map((target) => `${file.path} imports ${target}`),
    );
    expect(broken).toEqual([]);
  });

  test("point to files that exist", () => {
    const dangling = EVERYTHING.flatMap((file) =>
      localImports(file)
        .filter((target) => !existsSync(join(ROOT, target)))
        .map((target) => `${file.path} imports ${target}`),
    );
    expect(dangling).toEqual([]);
  });

  test("passes do not know each other", () => {
    const broken = filesUnder("passes")
      .filter(({ path }) => path !== "passes/index.ts" && !isRecipe(path))
      .flatMap((file) =>
        localImports(file)
          .filter((target) => target.startsWith("passes/"))
          .map((target) => `${file.path} imports ${target}`),
      );
    expect(broken).toEqual([]);
  });

  test("keep each foreign package in its place", () => {
    const broken = PRODUCT.flatMap((file) =>
      importsOf(file.text)
        .filter((name) => !name.startsWith(".") && !name.startsWith("node:"))
        .filter((name) => {
          const place = QUARANTINE[packageOf(name)];
          return place === undefined || (file.path !== place && !(place.endsWith("/") && file.path.startsWith(place)));
        })
        .map((name) => `${file.path} imports ${name}`),
    );
    expect(broken).toEqual([]);
  });

  test("keep files, processes and clocks out of the layers that only compute", () => {
    const broken = PRODUCT.filter(({ path }) => WITHOUT_NODE.includes(layerOf(path))).flatMap(({ path, text }) => [
      ...importsOf(text)
        .filter((name) => name.startsWith("node:"))
        .map((name) => `${path} imports ${name}`),
      ...(/\b(?:Date\.now|performance\.now|Math\.random|process\.\w)/.test(text) ? [`${path} asks the machine`] : []),
    ]);
    expect(broken).toEqual([]);
  });
});

/** Files in `passes` that list or configure passes instead of being one. */
function isRecipe(path: string): boolean {
  return !(basename(path, ".ts") in PASSES);
}

describe("passes", () => {
  test.each(Object.entries(PASSES))("%s: name, file, header and test carry one name", (key, pass) => {
    expect(pass.name).toBe(key);
    const text = readFileSync(join(ROOT, "passes", `${key}.ts`), "utf8");
    const header = /^\/\*\*.*?\*\//s.exec(text)?.[0] ?? "";
    expect(header).toContain(` * ${key}: `);
    expect(header).toMatch(/\bRefuses\b/);
    expect(existsSync(join(ROOT, "test", "passes", `${key}.test.ts`)), `test/passes/${key}.test.ts`).toBe(true);
  });

  test("every file that defines a pass is registered", () => {
    const defining = filesUnder("passes")
      .filter(({ text }) => /\bdefinePass\(/.test(text))
      .map(({ path }) => basename(path, ".ts"));
    expect(defining).toEqual(Object.keys(PASSES).sort());
    expect(Object.keys(PASSES)).toEqual(Object.keys(PASSES).sort());
  });
});

describe("files", () => {
  test(`have fewer than ${MAX_LINES} lines`, () => {
    const long = EVERYTHING.filter(({ text }) => text.split("\n").length > MAX_LINES).map(({ path }) => path);
    expect(long).toEqual([]);
  });

  test("are named for what they hold", () => {
    const vague = EVERYTHING.filter(({ path }) => /(^|[/-])(utils?|helpers?|common|misc|stuff)\b/.test(path));
    expect(vague.map(({ path }) => path)).toEqual([]);
  });

  test("export by name", () => {
    const unnamed = EVERYTHING.filter(({ text }) => /^export default\b|\bas default\b/m.test(text));
    expect(unnamed.map(({ path }) => path)).toEqual([]);
  });

  test("begin with what they are for", () => {
    const silent = PRODUCT.filter(({ text }) => !/^(#![^\n]*\n)?\/\*\*/.test(text));
    expect(silent.map(({ path }) => path)).toEqual([]);
  });
});
