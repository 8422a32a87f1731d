/** The package as its users get it: built, put into a node_modules folder, and used from outside. */

import { execFileSync, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DEMO } from "../support/state-quality.js";

const ROOT = join(import.meta.dirname, "..", "..");
const project = mkdtempSync(join(tmpdir(), "mambac-package-"));
const installed = join(project, "node_modules", "mambac");
afterAll(() => rmSync(project, { recursive: true, force: true }));

const tsc = (...args: string[]): string =>
  execFileSync(process.execPath, [join(ROOT, "node_modules", "typescript", "bin", "tsc"), ...args], {
    cwd: project,
    encoding: "utf8",
  });

beforeAll(() => {
  mkdirSync(installed, { recursive: true });
  execFileSync(
    process.execPath,
    [
      join(ROOT, "node_modules", "typescript", "bin", "tsc"),
      "-p",
      "tsconfig.build.json",
      "--outDir",
      join(installed, "dist"),
    ],
    { cwd: ROOT },
  );
  for (const part of ["package.json", "README.md", "LICENSE", "schema", "runtime-ops", "examples"]) {
    cpSync(join(ROOT, part), join(installed, part), { recursive: true });
  }
  for (const name of readdirSync(join(ROOT, "node_modules"))) {
    if (!name.startsWith(".")) symlinkSync(join(ROOT, "node_modules", name), join(project, "node_modules", name));
  }
  writeFileSync(join(project, "package.json"), JSON.stringify({ name: "user", type: "module" }));
  cpSync(join(ROOT, "examples", "typescript", "own-pass.ts"), join(project, "own-pass.ts"));
}, 120_000);

const STRICT = [
  "--strict",
  "--target",
  "es2022",
  "--lib",
  "es2022,esnext.disposable",
  "--types",
  "node",
  "--skipLibCheck",
  "false",
];

describe("from TypeScript", () => {
  test.each([
    ["nodenext", "nodenext"],
    ["esnext", "bundler"],
  ])("types resolve with module %s, moduleResolution %s", (module, resolution) => {
    const flags = ["--noEmit", "--module", module, "--moduleResolution", resolution, ...STRICT];
    expect(tsc(...flags, "own-pass.ts")).toBe("");
  });

  test("an own pass runs between mambac's, and its remarks are in the report", () => {
    tsc("--module", "nodenext", "--outDir", ".", ...STRICT, "own-pass.ts");
    const run = (
      ...args: string[]
    ): ReturnType<typeof spawnSync> & { readonly stdout: string; readonly stderr: string } =>
      spawnSync(process.execPath, ["own-pass.js", ...args], { cwd: project, encoding: "utf8" });
    const { status, stdout, stderr } = run(join(DEMO, "prefill.onnx"), "out.onnx");
    expect(status, stderr).toBe(0);
    expect(stdout).toMatch(/^layers\.0: conv$/m);
    expect(stdout).toMatch(/^layers\.3: scan$/m);
    expect(stdout).toMatch(/^prune-tiny layers\.0 in_proj: [1-9]\d* of 82432 are zero$/m);
    expect(stdout).toMatch(/^best next token: \d+$/m);
    expect(readFileSync(join(project, "out.onnx.recipe.yaml"), "utf8")).toContain("format: h8");
    const missing = run("absent.onnx", "out.onnx");
    expect(missing.status).toBe(2);
    expect(missing.stderr).toBe("onnx/read: absent.onnx: cannot read the file: it does not exist\n");
  }, 60_000);
});

test("the program runs from where it is installed, with recipes and schema", () => {
  const run = (...args: string[]): string =>
    execFileSync(process.execPath, [join(installed, "dist", "bin", "mambac.js"), ...args], { encoding: "utf8" });
  expect(run("--version")).toMatch(/^\d+\.\d+\.\d+\n$/);
  expect(JSON.parse(run("recipe", "schema"))).toEqual(
    JSON.parse(readFileSync(join(installed, "schema", "recipe.schema.json"), "utf8")),
  );
});

describe("the operator library", () => {
  /** A compiler that makes files, of sources that are there. */
  const compiler = join(project, "compiler");
  const script =
    'case "$1" in --version) echo compiler 1; exit;; esac\n' +
    'while [ $# -gt 0 ]; do case "$1" in -o) touch "$2"; shift;; *.cc) test -f "$1" || exit 1;; esac; shift; done';
  const build = (
    ...args: string[]
  ): ReturnType<typeof spawnSync> & { readonly stdout: string; readonly stderr: string } =>
    spawnSync(process.execPath, [join(installed, "dist", "bin", "mambac.js"), "build-ops", ...args], {
      cwd: project,
      encoding: "utf8",
      env: { ...process.env, CXX: compiler },
    });

  test.skipIf(process.platform === "win32")("is built from the sources in the package, where sessions look", () => {
    writeFileSync(compiler, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    const { status, stdout, stderr } = build();
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout.trim().startsWith(join(installed, "build", "ops"))).toBe(true);
    expect(existsSync(stdout.trim())).toBe(true);
    const elsewhere = build("-o", "mine");
    expect(elsewhere.stdout.trim().startsWith(join(project, "mine"))).toBe(true);
    expect(elsewhere.stderr).toContain("MAMBAC_OPS_LIBRARY=");
    rmSync(join(installed, "build"), { recursive: true });
  });

  test.skipIf(process.platform === "win32")("says why it cannot be built", () => {
    writeFileSync(compiler, "#!/bin/sh\ntest $1 = --version || { echo no such header >&2; exit 1; }\n", {
      mode: 0o755,
    });
    const failed = build("-o", "failed");
    expect(failed.status).toBe(2);
    expect(failed.stderr).toMatch(/^mambac: the compiler failed: [\s\S]*no such header/);
    rmSync(compiler);
    const absent = build("-o", "absent");
    expect(absent.status).toBe(2);
    expect(absent.stderr).toMatch(/cannot be built: no C\+\+ compiler .*the functions in every compiled file run/);
  });
});

test("holds what it needs, and nothing of whoever made it", () => {
  const packed = spawnSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
    cwd: installed,
    encoding: "utf8",
  });
  const document: unknown = JSON.parse(packed.stdout);
  const entries = Array.isArray(document) ? document : Object.values(document as object);
  const [{ files }] = entries as [{ readonly files: readonly { readonly path: string }[] }];
  const paths = files.map(({ path }) => path);
  for (const path of [
    "LICENSE",
    "README.md",
    "dist/api/index.d.ts",
    "dist/api/index.js",
    "dist/bin/mambac.js",
    "dist/passes/index.d.ts",
    "examples/demo/prefill.onnx",
    "examples/typescript/own-pass.ts",
    "runtime-ops/CMakeLists.txt",
    "runtime-ops/src/ort/register.cc",
    "schema/recipe.schema.json",
  ]) {
    expect(paths).toContain(path);
  }
  const strays = paths.filter((path) =>
    /^(?:dist\/)?(?:test|scripts|node_modules|build)\/|\.(?:tsbuildinfo|js\.map)$/.test(path),
  );
  // A source map would name sources that the package does not hold, by where they lay when it was built.
  expect(strays).toEqual([]);
  // The name of a folder of a home or of temporary files tells where the package was made.
  const places = paths.filter((path) =>
    /\/(?:home|Users|root|tmp|work)\//.test(readFileSync(join(installed, path), "latin1")),
  );
  expect(places).toEqual([]);
  expect(existsSync(join(installed, "dist", "test"))).toBe(false);
});
