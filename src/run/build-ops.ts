/**
 * Builds the op library with the system's C++ compiler.
 *
 * Writes build/ops/<library> in mambac's own folder, and where asked the native test program and the benchmark beside it. Nothing
 * is done when the sources, the flags and the compiler are those of the last build. CXX names the compiler (default g++, then
 * clang++). On Windows use runtime-ops/CMakeLists.txt.
 */

import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { opsLibraryName, packageRoot } from "./locate.js";

export interface BuildOptions {
  /** Also build the native test program; default false. */
  readonly tests?: boolean;
  /** Also build the benchmark; default false. */
  readonly bench?: boolean;
  /** Build the test program alone, with the address and undefined-behaviour sanitizers; default false. */
  readonly sanitize?: boolean;
  /** Where to build; default `build/ops` in mambac's own folder, where sessions look. */
  readonly folder?: string;
}

/** Paths of what was built, or why nothing could be. */
export type BuildResult =
  | { readonly kind: "built"; readonly library: string; readonly tests: string; readonly bench: string }
  | { readonly kind: "unavailable"; readonly reason: string };

const run = promisify(execFile);

/** Optimised less where the compiler would spend most of its time unrolling code that is only a fallback. */
const KERNELS = [
  { source: "src/cpu/portable.cc", level: "-O2" },
  { source: "src/cpu/avx2.cc", level: "-O3" },
  { source: "src/cpu/avx512.cc", level: "-O3" },
  { source: "src/cpu/dispatch.cc", level: "-O2" },
  { source: "src/cpu/calls.cc", level: "-O2" },
  { source: "src/core/plan.cc", level: "-O2" },
  { source: "src/core/capi.cc", level: "-O2" },
] as const;
const REGISTER = { source: "src/ort/register.cc", level: "-O2" } as const;
const TESTS = { source: "tests/kernels_test.cc", level: "-O2" } as const;
const BENCH = { source: "bench/bench.cc", level: "-O2" } as const;

/** No contraction: a multiply and an add stay two roundings unless the kernel says otherwise. */
const FLAGS = ["-std=c++17", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"];
/** Ours throws nothing; without these the library needs no C++ runtime at all. */
const LIBRARY_FLAGS = ["-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"];
/** GCC 12 sees uninitialised values inside its own AVX-512 header. */
const GCC_FLAGS = ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unused-function"];
const CLANG_FLAGS = ["-Wno-unused-function", "-Wno-pass-failed"];
const SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"];

interface Compiler {
  readonly command: string;
  readonly version: string;
}

async function findCompiler(): Promise<Compiler | null> {
  const asked = process.env["CXX"];
  for (const command of asked === undefined || asked === "" ? ["g++", "clang++"] : [asked]) {
    try {
      const { stdout } = await run(command, ["--version"]);
      return { command, version: stdout };
    } catch {
      // the next one
    }
  }
  return null;
}

/** Builds what the options ask for. Throws with the compiler's output when it fails. */
export async function buildOps(options: BuildOptions = {}): Promise<BuildResult> {
  if (process.platform === "win32") return { kind: "unavailable", reason: "on Windows build with CMake" };
  const compiler = await findCompiler();
  if (compiler === null) return { kind: "unavailable", reason: "no C++ compiler (looked for CXX, g++ and clang++)" };
  const root = join(packageRoot(), "runtime-ops");
  const out = options.folder ?? join(packageRoot(), "build", options.sanitize === true ? "ops-sanitize" : "ops");
  await mkdir(out, { recursive: true });
  const library = join(out, opsLibraryName());
  const [tests, bench] = [join(out, "kernels_test"), join(out, "bench")];
  const isGcc = !/clang/i.test(compiler.version);
  const extra = [...(isGcc ? GCC_FLAGS : CLANG_FLAGS), ...(options.sanitize === true ? SANITIZE : [])];
  const programs: Program[] = [];
  if (options.sanitize !== true) programs.push({ target: library, own: [REGISTER], link: linkFlags(isGcc) });
  if (options.tests === true || options.sanitize === true) programs.push({ target: tests, own: [TESTS], link: [] });
  if (options.bench === true) programs.push({ target: bench, own: [BENCH], link: [] });

  const headers = await hashOf(root, /\.h$/, [compiler.version, ...FLAGS, ...LIBRARY_FLAGS, ...extra]);
  const objects = new Map<Unit, string>();
  const units = [...KERNELS, ...programs.flatMap((program) => program.own)];
  await eachOfTwo(units, async (unit) => {
    objects.set(unit, await compile(compiler, root, join(out, "objects"), unit, headers, extra));
  });
  for (const program of programs) {
    const parts = [...KERNELS, ...program.own].flatMap((unit) => objects.get(unit) ?? []);
    const stamp = [...program.link, ...parts.map((path) => basename(path))].join("\n");
    const last = existsSync(program.target) ? await readFile(`${program.target}.stamp`, "utf8").catch(() => "") : "";
    if (stamp === last) continue;
    const made = `${program.target}.${process.pid}`; // renamed, so that a build beside this one never sees half a file
    const sanitizers = options.sanitize === true ? SANITIZE : [];
    await compileOrThrow(compiler, [...parts, ...program.link, ...sanitizers, "-o", made]);
    await rename(made, program.target);
    await writeFile(`${program.target}.stamp`, stamp);
  }
  return { kind: "built", library, tests, bench };
}

interface Unit {
  readonly source: string;
  readonly level: string;
}

interface Program {
  readonly target: string;
  readonly own: readonly Unit[];
  readonly link: readonly string[];
}

function linkFlags(isGcc: boolean): string[] {
  if (process.platform === "darwin") return ["-shared", "-undefined", "error"];
  // ONNX Runtime unloads a library with its last session; what it holds of ours would then be lost with every session.
  const stays = "-Wl,-z,nodelete";
  return ["-shared", "-Wl,--as-needed", "-Wl,-z,defs", stays, ...(isGcc ? ["-static-libgcc"] : [])];
}

/** Compiles one file unless an object of the same text, headers and flags is there already; gives the object's path. */
async function compile(
  compiler: Compiler,
  root: string,
  folder: string,
  unit: Unit,
  headers: string,
  extra: readonly string[],
): Promise<string> {
  const isTest = unit === TESTS || unit === BENCH;
  const level = extra.includes("-g") ? "-O1" : unit.level; // instrumented code takes minutes to optimise further
  const flags = [...FLAGS, ...(isTest ? [] : LIBRARY_FLAGS), ...extra, level, `-I${join(root, "include")}`];
  const source = await readFile(join(root, unit.source), "utf8");
  const key = createHash("sha256")
    .update([headers, ...flags, source].join("\0"))
    .digest("hex")
    .slice(0, 16);
  const name = basename(unit.source, ".cc");
  const object = join(folder, `${name}-${key}.o`);
  if (existsSync(object)) return object;
  await mkdir(folder, { recursive: true });
  const made = `${object}.${process.pid}`;
  await compileOrThrow(compiler, [...flags, "-c", join(root, unit.source), "-o", made]);
  await rename(made, object);
  for (const file of await readdir(folder)) {
    const old = file.startsWith(`${name}-`) && file.endsWith(".o") && join(folder, file) !== object;
    if (old) await rm(join(folder, file), { force: true });
  }
  return object;
}

async function compileOrThrow(compiler: Compiler, args: readonly string[]): Promise<void> {
  try {
    await run(compiler.command, [...args], { maxBuffer: 1 << 24 });
  } catch (cause) {
    const text = cause instanceof Error && "stderr" in cause ? String(cause.stderr) : String(cause);
    throw new Error(`${compiler.command} ${args.join(" ")}\n${text}`, { cause });
  }
}

/** Runs `work` on every item, two at a time. */
async function eachOfTwo<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  const worker = async (): Promise<void> => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item);
  };
  await Promise.all([worker(), worker()]);
}

/** Hash of every file below `root` whose name matches, and of `rest`. */
async function hashOf(root: string, pattern: RegExp, rest: readonly string[]): Promise<string> {
  const hash = createHash("sha256").update(rest.join("\0"));
  const files = await readdir(root, { recursive: true, withFileTypes: true });
  const paths = files
    .filter((file) => file.isFile() && pattern.test(file.name))
    .map((file) => join(file.parentPath, file.name));
  for (const path of paths.sort()) hash.update(`\0${path}\0`).update(await readFile(path));
  return hash.digest("hex");
}
