/**
 * Builds what needs nvcc: `tsx scripts/build-cuda.ts [--check] [--harness] [--gates] [--emulate]`.
 *
 * Without options: build/cuda/<library>, the op library with CPU and CUDA kernels, for sm_80, 86, 89, 90 and as PTX. With
 * --check: compiles every kernel for each of these, and from PTX for sm_100 where nvcc knows that, prints registers, spills
 * and instructions, and fails where a kernel spills (not on sm_100); --arch NAME, as often as wanted, checks no others. With
 * --harness: build/cuda/cuda_harness, which tests and times the kernels on a device; --gates runs it, too, and ends as it
 * does: 1 for a wrong result, 2 for a missed gate, 3 where there is no device (or no nvcc). With --emulate (needs a C++
 * compiler only): build/cuda/cuda_emulation_test, the kernels run on the host; --sanitize and --races add the address and
 * undefined-behaviour sanitizers, or the thread sanitizer. NVCC and CXX name the compilers (default nvcc and g++).
 * Exits with 0 and says so where nvcc is missing: everything else works without it.
 */

import { execFile, spawnSync } from "node:child_process";
import { mkdir, readdir, readFile, stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";
import { opsLibraryName, packageRoot } from "../src/run/locate.js";
import { longestLoop } from "./sass.js";

const run = promisify(execFile);
const MAX_BUFFER = 1 << 26;

const ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90"] as const;
/** What stands for devices that come after these: its code is made of the PTX, as a driver makes it. */
const NEWER = "sm_100";
const PTX = "compute_90";

const root = join(packageRoot(), "runtime-ops");
const out = join(packageRoot(), "build", "cuda");
const include = `-I${join(root, "include")}`;

const CPU_SOURCES = [
  "src/cpu/portable.cc",
  "src/cpu/avx2.cc",
  "src/cpu/avx512.cc",
  "src/cpu/dispatch.cc",
  "src/cpu/calls.cc",
] as const;
const CORE_SOURCES = ["src/core/plan.cc", "src/core/capi.cc"] as const;
/** Compiled as CUDA though they hold no kernels: they call its runtime. */
const CUDA_HOST_SOURCES = ["src/cuda/capi.cc", "src/cuda/ort.cc"] as const;

/** What ptxas says of one kernel on one architecture. */
export interface KernelReport {
  readonly architecture: string;
  readonly kernel: string;
  readonly registers: number;
  /** Bytes of spill stores and loads. */
  readonly spills: number;
  /** 16-byte machine instructions of the whole kernel. */
  readonly instructions: number;
  /** Those of its longest loop, rare branches included; 0: it has none. */
  readonly loop: number;
}

/** nvcc's command, or null where it does not run. */
export async function findNvcc(): Promise<string | null> {
  const command = process.env["NVCC"] ?? "nvcc";
  try {
    await run(command, ["--version"]);
    return command;
  } catch {
    return null;
  }
}

/** The architectures that `--check` compiles for. */
async function checkedArchitectures(nvcc: string): Promise<readonly string[]> {
  const { stdout } = await run(nvcc, ["--list-gpu-code"]);
  return stdout.split(/\s+/).includes(NEWER) ? [...ARCHITECTURES, NEWER] : ARCHITECTURES;
}

/** Compiles every kernel for some architectures and reads what became of it. Throws with nvcc's output when it fails. */
async function checkKernels(nvcc: string, architectures: readonly string[]): Promise<readonly KernelReport[]> {
  await mkdir(out, { recursive: true });
  const reports: KernelReport[] = [];
  const jobs = (await kernelSources()).flatMap((source) =>
    architectures.map((architecture) => ({ source, architecture })),
  );
  await spread(jobs, async ({ source, architecture }) => {
    const cubin = join(out, `${basename(source, ".cu")}-${architecture}.cubin`);
    const arch = architecture === NEWER ? ["-gencode", gencode(NEWER, PTX)] : [`-arch=${architecture}`];
    const flags = ["-std=c++17", "-O3", include, ...arch, "-Xptxas", "-v", "-cubin"];
    const { stderr } = await compile(nvcc, [...flags, join(root, source), "-o", cubin]);
    reports.push(...parseReport(stderr, architecture, await machineCode(cubin)));
  });
  const order = (r: KernelReport): string => `${r.kernel} ${r.architecture}`;
  return reports.sort((a, b) => (order(a) < order(b) ? -1 : 1));
}

/** Kernels of one ptxas log (`-v`). `codes`: their machine code by mangled name. */
export function parseReport(log: string, architecture: string, codes: ReadonlyMap<string, Uint8Array>): KernelReport[] {
  const reports: KernelReport[] = [];
  for (const part of log.split("Compiling entry function '").slice(1)) {
    const name = part.slice(0, part.indexOf("'"));
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(part);
    const registers = /Used (\d+) registers/.exec(part);
    const code = codes.get(name);
    if (spills === null || registers === null || code === undefined) {
      throw new Error(`ptxas reports ${name} in a form this script does not know:\n${part}`);
    }
    reports.push({
      architecture,
      kernel: readable(name),
      registers: Number(registers[1]),
      spills: Number(spills[1]) + Number(spills[2]),
      instructions: code.length / 16,
      loop: longestLoop(code),
    });
  }
  return reports;
}

/** Every `.text.<kernel>` section of a cubin, an ELF64 little-endian file. */
async function machineCode(path: string): Promise<Map<string, Uint8Array>> {
  const file = await readFile(path);
  const [table, entry, count] = [Number(file.readBigUInt64LE(40)), file.readUInt16LE(58), file.readUInt16LE(60)];
  const section = (i: number): number => table + i * entry;
  const names = Number(file.readBigUInt64LE(section(file.readUInt16LE(62)) + 24));
  const codes = new Map<string, Uint8Array>();
  for (let i = 0; i < count; i++) {
    const start = names + file.readUInt32LE(section(i));
    const name = file.toString("latin1", start, file.indexOf(0, start));
    const [from, size] = [Number(file.readBigUInt64LE(section(i) + 24)), Number(file.readBigUInt64LE(section(i) + 32))];
    if (name.startsWith(".text.")) codes.set(name.slice(6), file.subarray(from, from + size));
  }
  return codes;
}

/** A kernel's name and template arguments out of its mangled name: `decode_packed<false,Codes4,...>`. */
function readable(mangled: string): string {
  const known =
    /decode_[a-z]+|tokens_[a-z]+|round_replay|replay_[a-z]+|scan_tokens|scan_general|conv_token4|conv_token|conv_rows?|rotate_[a-z]+|gate_flat|gate_norm_any|gate_norm/;
  const name = known.exec(mangled)?.[0] ?? mangled;
  const rest = mangled.slice(mangled.indexOf(name) + name.length);
  const parts = [...rest.matchAll(/L([bi])(\d+)E|\d+(Codes4|Codes8|FloatRows|HalfRows|CodeSink)/g)];
  const halves = rest.startsWith("It") ? ["half"] : []; // the type of activations comes first
  const args = [...halves, ...parts.map((m) => m[3] ?? (m[1] === "b" ? String(m[2] === "1") : (m[2] ?? "")))];
  return args.length === 0 ? name : `${name}<${args.join(",")}>`;
}

async function kernelSources(): Promise<string[]> {
  const files = await readdir(join(root, "src", "cuda"));
  return files
    .filter((file) => file.endsWith(".cu"))
    .sort()
    .map((file) => `src/cuda/${file}`);
}

/** Code for every architecture, and PTX of the last for newer devices. */
function codeFlags(): string[] {
  const real = ARCHITECTURES.map((a) => gencode(a, `compute_${a.slice(3)}`));
  return [...real, gencode(PTX, PTX)].flatMap((each) => ["-gencode", each]);
}
function gencode(code: string, arch: string): string {
  return `arch=${arch},code=${code}`;
}

/** Objects of the CPU kernels (by g++, which their files are written for) and of the CUDA side (by nvcc). */
async function objects(nvcc: string): Promise<string[]> {
  const cxx = process.env["CXX"] ?? "g++";
  const shared = ["-std=c++17", include, "-DMAMBAC_CUDA"];
  const host = [
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wno-psabi",
    "-O2",
  ];
  const device = ["-O3", ...codeFlags(), "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden"];
  await mkdir(out, { recursive: true });
  const target = (source: string): string => join(out, `${source.replaceAll("/", "-")}.o`);
  const cuda = [...(await kernelSources()), ...CUDA_HOST_SOURCES];
  const cpu = [...CPU_SOURCES, ...CORE_SOURCES, "src/ort/register.cc"];
  const changed = await lastChange();
  await spread([...cpu, ...cuda], async (source) => {
    if (await isCurrent(target(source), source, changed)) return;
    const tail = ["-c", join(root, source), "-o", target(source)];
    if (cuda.includes(source)) await compile(nvcc, [...shared, ...device, "-x", "cu", ...tail]);
    else await compile(cxx, [...shared, ...host, ...tail]);
  });
  return [...cpu, ...cuda].map(target);
}

async function buildLibrary(nvcc: string): Promise<string> {
  const library = join(out, opsLibraryName());
  await compile(nvcc, [
    "-shared",
    "-Xlinker",
    "-znodelete",
    "-cudart",
    "static",
    ...(await objects(nvcc)),
    "-o",
    library,
  ]);
  return library;
}

async function buildHarness(nvcc: string): Promise<string> {
  const program = join(out, "cuda_harness");
  const harness = `${program}.o`;
  const flags = ["-std=c++17", "-O2", include, "-x", "c++"]; // it launches kernels and has none
  const [kernels] = await Promise.all([
    objects(nvcc),
    compile(nvcc, [...flags, "-c", join(root, "tests", "cuda_harness.cc"), "-o", harness]),
  ]);
  await compile(nvcc, ["-cudart", "static", harness, ...kernels, "-o", program]);
  return program;
}

export interface EmulationOptions {
  /** Address and undefined-behaviour sanitizers. */
  readonly sanitize?: boolean;
  /** The thread sanitizer, which reports missing barriers. */
  readonly races?: boolean;
}

/** The test program that runs the CUDA kernels on the host. Needs no nvcc. */
export async function buildEmulation(options: EmulationOptions = {}): Promise<string> {
  const cxx = process.env["CXX"] ?? "g++";
  const kind = options.sanitize === true ? "-sanitize" : options.races === true ? "-races" : "";
  const folder = join(out, `emulation${kind}`);
  await mkdir(folder, { recursive: true });
  const instrument =
    options.sanitize === true
      ? ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
      : options.races === true
        ? ["-g", "-fsanitize=thread"]
        : [];
  const flags = [
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
    include,
  ];
  const emulated = ["-DMAMBAC_CUDA", "-DMAMBAC_CUDA_EMULATION", `-I${join(root, "tests")}`];
  const tests = [
    "tests/cuda_emulation.cc",
    "tests/cuda_emulation_test.cc",
    "src/ort/register.cc",
    ...CUDA_HOST_SOURCES,
  ];
  const target = (source: string): string => join(folder, `${source.replaceAll("/", "-")}.o`);
  const watched = [...(await kernelSources()), ...tests, ...CORE_SOURCES];
  // The CPU kernels are compared with, not tested: instrumenting them would take longer than all the rest.
  const quiet = ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unused-function"];
  const changed = await lastChange();
  await spread([...watched, ...CPU_SOURCES], async (source) => {
    if (await isCurrent(target(source), source, changed)) return;
    const fibers = source === "tests/cuda_emulation.cc" && options.races === true; // see there
    const own = fibers ? ["-g", "-DMAMBAC_WATCH_RACES"] : watched.includes(source) ? instrument : quiet;
    await compile(cxx, [...flags, ...emulated, ...own, "-x", "c++", "-c", join(root, source), "-o", target(source)]);
  });
  const program = join(folder, "cuda_emulation_test");
  await compile(cxx, [...instrument, ...[...watched, ...CPU_SOURCES].map(target), "-o", program]);
  return program;
}

/** When a header or this script last changed, in milliseconds. */
async function lastChange(): Promise<number> {
  const files = await readdir(root, { recursive: true, withFileTypes: true });
  const headers = files.filter((file) => file.isFile() && file.name.endsWith(".h"));
  const paths = [...headers.map((file) => join(file.parentPath, file.name)), fileURLToPath(import.meta.url)];
  return Math.max(...(await Promise.all(paths.map(async (path) => (await stat(path)).mtimeMs))));
}

/** Whether an object is newer than its source and all headers. */
async function isCurrent(object: string, source: string, changed: number): Promise<boolean> {
  const made = await stat(object).catch(() => null);
  if (made === null) return false;
  return made.mtimeMs > changed && made.mtimeMs > (await stat(join(root, source))).mtimeMs;
}

async function compile(command: string, args: readonly string[]): Promise<{ stderr: string }> {
  try {
    const { stdout, stderr } = await run(command, [...args], { maxBuffer: MAX_BUFFER });
    return { stderr: stdout + stderr };
  } catch (cause) {
    const text = cause instanceof Error && "stderr" in cause ? String(cause.stderr) : String(cause);
    throw new Error(`${command} ${args.join(" ")}\n${text}`, { cause });
  }
}

/** Runs `work` on every item, as many at a time as there are processors. */
async function spread<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  const worker = async (): Promise<void> => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item);
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
}

function printReports(reports: readonly KernelReport[]): void {
  const width = Math.max(...reports.map((r) => r.kernel.length));
  console.log(`${"kernel".padEnd(width)}  arch    registers  spill bytes  instructions  longest loop`);
  for (const r of reports) {
    const numbers = [
      String(r.registers).padStart(9),
      String(r.spills).padStart(11),
      String(r.instructions).padStart(12),
      String(r.loop).padStart(12),
    ];
    console.log(`${r.kernel.padEnd(width)}  ${r.architecture.padEnd(6)}  ${numbers.join("  ")}`);
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      check: { type: "boolean", default: false },
      harness: { type: "boolean", default: false },
      gates: { type: "boolean", default: false },
      arch: { type: "string", multiple: true },
      emulate: { type: "boolean", default: false },
      sanitize: { type: "boolean", default: false },
      races: { type: "boolean", default: false },
    },
  });
  if (values.emulate) {
    console.log(await buildEmulation({ sanitize: values.sanitize, races: values.races }));
    return;
  }
  const nvcc = await findNvcc();
  if (nvcc === null) {
    console.log("CUDA kernels not built: no nvcc (NVCC names one). The op library of build-ops.ts runs without them.");
    if (values.gates) process.exitCode = 3;
    return;
  }
  if (values.check) {
    const reports = await checkKernels(nvcc, values.arch ?? (await checkedArchitectures(nvcc)));
    printReports(reports);
    const bad = reports.filter((r) => r.spills > 0 && r.architecture !== NEWER);
    for (const r of bad) console.error(`${r.kernel} on ${r.architecture} spills ${r.spills} bytes`);
    if (bad.length > 0) process.exitCode = 1;
    return;
  }
  if (values.gates) {
    process.exitCode = spawnSync(await buildHarness(nvcc), ["--gates"], { stdio: "inherit" }).status ?? 1;
    return;
  }
  console.log(values.harness ? await buildHarness(nvcc) : await buildLibrary(nvcc));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
