/**
 * Times the op library's kernels inside ONNX Runtime and holds them to the speed gates of the project.
 *
 * `tsx scripts/bench-ops.ts [--rounds 15] [--only C1,C3] [--clock wall|cpu] [--json]`. Every gate is a ratio of two things that run
 * alternately (A, B, A, B, ...) in one process: the median of the rounds' quotients, with the smallest and largest. A group
 * of which the baseline moved by more than 25 % between rounds is measured again, three times at most, and then marked as
 * unsteady. Exits with 3 when a gate is missed. Sizes of the 370M model unless said: H=32 P=64 N=128, 48 layers.
 */

import { execFileSync } from "node:child_process";
import { parseArgs } from "node:util";
import { formatTable } from "../src/commands/text-table.js";
import { ratioOf, type Spread, spreadOf } from "../src/run/bench-plan.js";
import { EXIT } from "../src/support/errors.js";
import { buildOps } from "./build-ops.js";
import { LINEAR_ATTENTION, NODE_PRIMITIVES, openCase, PRIMITIVES, type Runnable, type Shape } from "./ops-models.js";

interface Entrant {
  readonly label: string;
  readonly kind: string;
  readonly shape: Shape;
  readonly threads?: number;
  /** Default true. */
  readonly inPlace?: boolean;
  /** Steps of which only one rounds the state: timed together, and counted as so many. Default 1. */
  readonly turn?: number;
}

interface Group {
  readonly title: string;
  readonly entrants: readonly Entrant[];
  /** Read 768 MB before every timed step. */
  readonly cold?: boolean;
}

interface Gate {
  readonly id: string;
  readonly what: string;
  /** Time of `slow` over time of `fast`, both labels of `group`. */
  readonly group: keyof typeof GROUPS;
  readonly slow: string;
  readonly fast: string;
  /** Null: reported, held to nothing. */
  readonly minimum: number | null;
}

const APART = "LinearAttention, state apart";

const MODEL_370M: Shape = { layers: 48, batch: 1, length: 1, heads: 32, headDim: 64, dState: 128 };
const LAYER_130M: Shape = { layers: 1, batch: 1, length: 1, heads: 24, headDim: 64, dState: 128 };

function scans(shape: Shape, ...formats: readonly string[]): Entrant[] {
  return formats.map((format) => ({ label: format, kind: `Mamba2Scan${format}`, shape }));
}

/** An operator whose state is rounded once in `length` tokens. */
function replays(shape: Shape, format: string, length: number): Entrant {
  const kind = `Mamba2Scan${format}Replay`;
  return { label: `${format} replay ${length}`, kind, shape: { ...shape, replayLength: length }, turn: length };
}

// Batch 32 of all 48 layers would be 1.6 GB of float states; 8 layers are 268 MB, already far beyond any cache level
// that one core has to itself.
const BATCH_32: Shape = { ...MODEL_370M, layers: 8, batch: 32 };
const BATCH_8: Shape = { ...MODEL_370M, layers: 12, batch: 8 };
const PROMPT: Shape = { ...LAYER_130M, length: 512 };

const GROUPS = {
  primitives: {
    title: "decode, batch 1, standard operators",
    entrants: [
      { label: NODE_PRIMITIVES, kind: NODE_PRIMITIVES, shape: MODEL_370M },
      { label: PRIMITIVES, kind: PRIMITIVES, shape: MODEL_370M },
      ...scans(MODEL_370M, "F32", "H4"),
    ],
  },
  one: {
    title: "decode, batch 1",
    entrants: [...scans(MODEL_370M, "F32", "F16", "H8", "H8Max", "H4", "H4Max")],
  },
  replay: {
    title: "decode, batch 1, replayed states",
    entrants: [
      ...scans(MODEL_370M, "F32", "F16", "H8", "H4", "H4Max"),
      ...[4, 8, 16].map((length) => replays(MODEL_370M, "H4", length)),
      replays(MODEL_370M, "H4Max", 16),
      replays(MODEL_370M, "H8", 16),
    ],
  },
  frozen: {
    title: "decode, batch 1, static scales",
    entrants: scans(MODEL_370M, "F32", "F16", "H4", "H4Static", "H8Static"),
  },
  cold: { title: "decode, batch 1, cold", entrants: scans(MODEL_370M, "F32", "F16", "H8", "H4"), cold: true },
  many: { title: "decode, batch 32", entrants: scans(BATCH_32, "F32", "F16", "H8", "H8Max", "H4", "H4Max") },
  threads: {
    title: "decode, batch 8, threads",
    entrants: [1, 2].flatMap((threads) =>
      scans(BATCH_8, "F32", "H8", "H4").map((one) => ({ ...one, label: `${one.label} on ${threads}`, threads })),
    ),
  },
  decode: {
    title: "decode, one layer H=24",
    entrants: [
      { label: APART, kind: LINEAR_ATTENTION, shape: LAYER_130M, inPlace: false },
      { label: LINEAR_ATTENTION, kind: LINEAR_ATTENTION, shape: LAYER_130M },
      ...scans(LAYER_130M, "F32"),
    ],
  },
  prompt: {
    title: "prefill of 512, one layer H=24",
    entrants: [{ label: LINEAR_ATTENTION, kind: LINEAR_ATTENTION, shape: PROMPT }, ...scans(PROMPT, "F32", "H8", "H4")],
  },
} as const satisfies Record<string, Group>;

const GATES: readonly Gate[] = [
  gate("C1", "f32 against standard operators in onnxruntime-node", "primitives", NODE_PRIMITIVES, "F32", 8),
  gate("C1", "the same, operators of all layers in one session, in place", "primitives", PRIMITIVES, "F32", null),
  gate("C2", "exact h4 against standard operators in onnxruntime-node", "primitives", NODE_PRIMITIVES, "H4", 12),
  gate("C2", "the same, operators of all layers in one session, in place", "primitives", PRIMITIVES, "H4", null),
  gate("C3", "exact h4 against f32, batch 1, cold", "cold", "F32", "H4", 1.5),
  gate("C3", "exact h4 against f32, batch 32", "many", "F32", "H4", 1.5),
  gate("C4", "exact h8 against f32, batch 1", "one", "F32", "H8", 1.5),
  gate("C4", "exact h8 against f32, batch 32", "many", "F32", "H8", 1.5),
  gate("C5", "h4 with static scales against f32, batch 1", "frozen", "F32", "H4Static", 3.5),
  gate("C5", "h8 with static scales against f32, batch 1", "frozen", "F32", "H8Static", null),
  gate("C5", "h4 with static scales against exact h4", "frozen", "H4", "H4Static", null),
  gate("C6", "exact h4 against f16, batch 1", "one", "F16", "H4", null),
  gate("C6", "exact h4 against f16, batch 32", "many", "F16", "H4", null),
  gate("C8", "f32, 2 threads against 1, batch 8", "threads", "F32 on 1", "F32 on 2", 1.8),
  gate("C8", "h8, 2 threads against 1, batch 8", "threads", "H8 on 1", "H8 on 2", 1.8),
  gate("C8", "h4, 2 threads against 1, batch 8", "threads", "H4 on 1", "H4 on 2", 1.8),
  gate("C9", "h4, replay of 16 tokens against exact", "replay", "H4", "H4 replay 16", 2.5),
  gate("C9", "h4 with max scales, the same", "replay", "H4Max", "H4Max replay 16", null),
  gate("C9", "h4, replay of 8 tokens against exact", "replay", "H4", "H4 replay 8", null),
  gate("C9", "h4, replay of 4 tokens against exact", "replay", "H4", "H4 replay 4", null),
  gate("C9", "h8, replay of 16 tokens against exact", "replay", "H8", "H8 replay 16", null),
  gate("C9", "h4, replay of 16 tokens against f32", "replay", "F32", "H4 replay 16", null),
  gate("C9", "h4, replay of 16 tokens against f16", "replay", "F16", "H4 replay 16", null),
  gate("LA", "decode, f32 in place against LinearAttention with its state apart", "decode", APART, "F32", 1.8),
  gate("LA", "decode, f32 in place against LinearAttention in place too", "decode", LINEAR_ATTENTION, "F32", null),
  gate("LA", "prefill of 512, f32 against LinearAttention", "prompt", LINEAR_ATTENTION, "F32", 1.5),
  gate("-", "h4 with max scales against f32, batch 1", "one", "F32", "H4Max", null),
  gate("-", "h8 with max scales against f32, batch 1", "one", "F32", "H8Max", null),
  gate("-", "prefill of 512, h4 against LinearAttention", "prompt", LINEAR_ATTENTION, "H4", null),
];

function gate(
  id: string,
  what: string,
  group: keyof typeof GROUPS,
  slow: string,
  fast: string,
  minimum: number | null,
): Gate {
  return { id, what, group, slow, fast, minimum };
}

interface Measured {
  /** Microseconds of a step (all layers), by label, one a round. */
  readonly times: ReadonlyMap<string, readonly number[]>;
  readonly steady: boolean;
}

interface Row {
  readonly id: string;
  readonly what: string;
  readonly ratio: Spread | null;
  /** Quotient of the two fastest rounds: what a quiet machine would give. */
  readonly fastest: number | null;
  readonly minimum: number | null;
  readonly verdict: "PASS" | "FAIL" | "not measured" | "reported";
  readonly note: string;
}

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "15" },
    only: { type: "string", default: "" },
    clock: { type: "string", default: "wall" },
    json: { type: "boolean", default: false },
  },
});
const rounds = Math.max(3, Number(values.rounds));
const cpuTime = values.clock === "cpu";
const only = values.only === "" ? null : new Set(values.only.split(","));
const wanted = (id: string): boolean => only === null || only.has(id);

const built = await buildOps({ bench: true });
if (built.kind === "unavailable") {
  process.stderr.write(`the op library cannot be built: ${built.reason}\n`);
  process.exit(EXIT.unsupported);
}

/** A round's figure is the fastest of so many runs, as a run that was interrupted says nothing. */
const SAMPLES = 3;

/** Microseconds. CPU time leaves out what others take from a busy machine, and is no good for several threads. */
function clock(): number {
  if (!cpuTime) return 1000 * performance.now();
  const { user, system } = process.cpuUsage();
  return user + system;
}

const cache = new Uint8Array(768 * 2 ** 20);

/** Pushes everything out of the caches a core has to itself. */
function flush(): number {
  let sum = 0;
  for (let i = 0; i < cache.length; i += 64) sum += cache[i] ?? 0;
  return sum;
}

async function measure(group: Group, library: string): Promise<Measured> {
  process.stderr.write(`${group.title}\n`);
  const cases: Case[] = [];
  try {
    for (const { label, kind, shape, threads = 1, inPlace = true, turn = 1 } of group.entrants) {
      const runnable = await openCase(kind, shape, { library, threads, inPlace });
      await runnable.run();
      const start = performance.now();
      await runnable.run();
      const milliseconds = performance.now() - start;
      const repeats = group.cold === true ? 1 : Math.max(1, Math.min(200, Math.ceil(4 / milliseconds)));
      cases.push({ label, runnable, repeats: turn * Math.ceil(repeats / turn) });
    }
    let result: Measured | null = null;
    for (let attempt = 0; attempt < 3 && result?.steady !== true; attempt++)
      result = await timeAll(cases, group.cold === true);
    return result ?? { times: new Map(), steady: false };
  } finally {
    for (const { runnable } of cases) runnable.close();
  }
}

interface Case {
  readonly label: string;
  readonly runnable: Runnable;
  readonly repeats: number;
}

async function timeAll(cases: readonly Case[], cold: boolean): Promise<Measured> {
  const times = new Map<string, number[]>(cases.map(({ label }) => [label, []]));
  for (let round = 0; round < rounds; round++) {
    for (const { label, runnable, repeats } of cases) {
      // What was measured before has filled the caches, so a warm case warms up again.
      if (!cold) await runnable.run();
      let fastest = Number.POSITIVE_INFINITY;
      for (let sample = 0; sample < SAMPLES; sample++) {
        if (cold) flush();
        const start = clock();
        for (let i = 0; i < repeats; i++) await runnable.run();
        fastest = Math.min(fastest, (clock() - start) / repeats);
      }
      times.get(label)?.push(fastest);
    }
  }
  const [baseline = []] = times.values();
  const sorted = [...baseline].sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.floor(share * (sorted.length - 1))] ?? 0;
  return { times, steady: at(0.9) <= 1.25 * at(0.1) };
}

interface NativeVariant {
  readonly name: string;
  /** Time of the first variant, f32, over that of this one: median of the rounds. */
  readonly speed: number;
  readonly fastest: number;
}

/** The native benchmark of the 48 layers, without ONNX Runtime, on the best instruction set or a named one. */
function nativeStack(
  bench: string,
  isa: string | null,
): { isa: string; find: (start: string) => NativeVariant } | null {
  const clockName = cpuTime ? "cpu" : "wall";
  const flags = ["--case", "stack", "--rounds", String(2 * rounds), "--clock", clockName];
  const text = execFileSync(bench, isa === null ? flags : [...flags, "--isa", isa], { encoding: "utf8" });
  const [first] = JSON.parse(text) as readonly { readonly isa: string; readonly variants: readonly NativeVariant[] }[];
  if (first === undefined) return null;
  const find = (start: string): NativeVariant => {
    const found = first.variants.find(({ name }) => name.startsWith(start));
    if (found === undefined) throw new Error(`the native benchmark lacks ${start}`);
    return found;
  };
  return { isa: first.isa, find };
}

function nativeRow(id: string, what: string, median: number, fastest: number, minimum: number): Row {
  const verdict = median >= minimum ? "PASS" : "FAIL";
  return { id, what, ratio: { median, min: median, max: median }, fastest, minimum, verdict, note: "" };
}

/** C7: static scales with the instructions of AVX2 alone. */
function narrowRow(bench: string): Row {
  process.stderr.write("static scales on AVX2\n");
  const what = "avx2: h4 with static scales against f32";
  const stack = nativeStack(bench, "avx2");
  if (stack === null) {
    const note = "this machine has no AVX2";
    return { id: "C7", what, ratio: null, fastest: null, minimum: 2, verdict: "not measured", note };
  }
  const [float, frozen] = [stack.find("F32"), stack.find("H4Static")];
  return nativeRow("C7", what, frozen.speed, float.fastest / frozen.fastest, 2);
}

/** C10: the kernel against a bare pass over the same memory. */
function bandwidthRow(bench: string): Row {
  process.stderr.write("float states against a bare pass over them\n");
  const stack = nativeStack(bench, null);
  if (stack === null) throw new Error("the native benchmark gave nothing");
  const [kernel, pass] = [stack.find("F32"), stack.find("pass")];
  const what = `f32 over memory bandwidth in place (${stack.isa})`;
  return nativeRow("C10", what, 1 / pass.speed, pass.fastest / kernel.fastest, 0.85);
}

const results = new Map<string, Measured>();
const rows: Row[] = [];
for (const one of GATES) {
  if (!wanted(one.id)) continue;
  const { id, what } = one;
  if (cpuTime && one.group === "threads") {
    const note = "CPU time says nothing about threads: measure with --clock wall on an idle machine";
    rows.push({ id, what, ratio: null, fastest: null, minimum: one.minimum, verdict: "not measured", note });
    continue;
  }
  const measured = results.get(one.group) ?? (await measure(GROUPS[one.group], built.library));
  results.set(one.group, measured);
  const [slow = [], fast = []] = [measured.times.get(one.slow), measured.times.get(one.fast)];
  const ratio = ratioOf(slow, fast);
  const [best, other] = [spreadOf(slow), spreadOf(fast)];
  const passed = one.minimum !== null && (ratio?.median ?? 0) >= one.minimum;
  rows.push({
    id,
    what,
    ratio,
    fastest: best === null || other === null ? null : best.min / other.min,
    minimum: one.minimum,
    verdict: one.minimum === null ? "reported" : passed ? "PASS" : "FAIL",
    note: measured.steady ? "" : "unsteady: the machine was busy",
  });
}
if (wanted("C7")) rows.push(narrowRow(built.bench));
if (wanted("C10")) rows.push(bandwidthRow(built.bench));

const timings = [...results].flatMap(([group, { times }]) =>
  [...times].map(([label, list]) => ({ group, label, microseconds: spreadOf(list) })),
);
if (values.json) process.stdout.write(`${JSON.stringify({ rounds, gates: rows, timings }, null, 2)}\n`);
else {
  const digits = (value: number | null | undefined): string =>
    value === null || value === undefined ? "-" : value.toFixed(2);
  process.stdout.write(
    `${formatTable([
      ["case", "of", "us a step", "smallest", "largest"],
      ...timings.map(({ group, label, microseconds }) => {
        const title = GROUPS[group as keyof typeof GROUPS].title;
        return [
          title,
          label,
          ...[microseconds?.median, microseconds?.min, microseconds?.max].map((v) => v?.toFixed(1) ?? "-"),
        ];
      }),
    ])}\n`,
  );
  process.stdout.write(
    formatTable([
      ["gate", "", "ratio", "rounds", "fastest", "minimum", "verdict", "note"],
      ...rows.map(({ id, what, ratio, fastest, minimum, verdict, note }) => [
        id,
        what,
        digits(ratio?.median),
        ratio === null ? "" : `${digits(ratio.min)}..${digits(ratio.max)}`,
        digits(fastest),
        digits(minimum),
        verdict,
        note,
      ]),
    ]),
  );
}
if (rows.some(({ verdict }) => verdict === "FAIL")) process.exitCode = EXIT.belowGate;
