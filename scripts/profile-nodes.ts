/** Where the time of a step goes, by operator, from ONNX Runtime's own profile of single-threaded decoding. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readModel } from "../src/onnx/read.js";
import { spreadOf } from "../src/run/bench-plan.js";
import { allocate, openNativeSession } from "../src/run/native-session.js";
import { integerMemory } from "../src/run/runner.js";
import { readSignature } from "../src/run/signature.js";
import { StateMemory } from "../src/run/state-memory.js";

export interface OperatorTime {
  readonly op: string;
  /** Nodes of this operator that ran in a step. */
  readonly nodes: number;
  /** Microseconds a step over all of them, less what profiling itself adds to every node. */
  readonly microseconds: number;
}

export interface StepProfile {
  readonly operators: readonly OperatorTime[];
  /** Microseconds a step without profiling, all included. */
  readonly step: number;
  /** Nodes that run in a step. */
  readonly nodes: number;
}

interface ProfileEvent {
  readonly cat?: string;
  readonly name?: string;
  readonly ts?: number;
  readonly dur?: number;
  readonly args?: { readonly op_name?: string; readonly node_index?: string };
}

const STEPS = 200;

/**
 * Profiles decoding of one sequence from zero state, states in place. Writing an event costs more than a small node, so
 * the profile's sum is scaled back to the step's own time, every node giving the same. The time of an `If` still holds what
 * profiling adds to the nodes inside it (without profiling an `If` costs about 1 us), so shares are good for kernels and
 * rough for functions. Throws `signature/...` and `ort/...`.
 */
export async function profileStep(path: string, library: string | null): Promise<StepProfile> {
  const folder = mkdtempSync(join(tmpdir(), "mambac-profile-"));
  try {
    const { microseconds } = await timeSteps(path, library, null);
    const { profile } = await timeSteps(path, library, join(folder, "step"));
    if (profile === null) throw new Error("ONNX Runtime wrote no profile");
    const events = JSON.parse(readFileSync(profile, "utf8")) as readonly ProfileEvent[];
    const kernels = events.filter(({ cat, name }) => cat === "Node" && name?.endsWith("_kernel_time") === true);
    // The median of each node's runs: a busy machine interrupts some of them for milliseconds.
    const byNode = new Map<string, { readonly op: string; readonly durations: number[] }>();
    for (const { event, own } of ownTimes(kernels)) {
      const { name = "", args } = event;
      const op = args?.op_name ?? "?";
      const key = `${name} ${args?.node_index ?? ""} ${op}`;
      const node = byNode.get(key) ?? { op, durations: [] };
      node.durations.push(own);
      byNode.set(key, node);
    }
    const byOp = new Map<string, { nodes: number; microseconds: number }>();
    for (const { op, durations } of byNode.values()) {
      const sum = byOp.get(op) ?? { nodes: 0, microseconds: 0 };
      const runs = durations.length / STEPS;
      byOp.set(op, {
        nodes: sum.nodes + runs,
        microseconds: sum.microseconds + runs * (spreadOf(durations)?.median ?? 0),
      });
    }
    const sums = [...byOp.values()];
    const count = sums.reduce((total, { nodes }) => total + nodes, 0);
    const inside = sums.reduce((total, sum) => total + sum.microseconds, 0);
    const added = Math.max(0, inside - microseconds) / count;
    const operators = [...byOp]
      .map(([op, { nodes, microseconds: raw }]) => ({ op, nodes, microseconds: Math.max(0, raw - added * nodes) }))
      .sort((x, y) => y.microseconds - x.microseconds);
    return { operators, step: microseconds, nodes: count };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Each event's time less that of the nodes which ran inside it: those of an `If` are listed as well. */
function ownTimes(events: readonly ProfileEvent[]): { readonly event: ProfileEvent; readonly own: number }[] {
  const all = events.map((event) => ({ event, own: event.dur ?? 0, end: (event.ts ?? 0) + (event.dur ?? 0) }));
  // Outer ones first where two begin together.
  all.sort((a, b) => (a.event.ts ?? 0) - (b.event.ts ?? 0) || b.end - a.end);
  const open: (typeof all)[number][] = [];
  for (const one of all) {
    while (open.length > 0 && (open.at(-1)?.end ?? 0) < one.end) open.pop();
    const outer = open.at(-1);
    const holds = outer !== undefined && /^(If|Loop|Scan)$/.test(outer.event.args?.op_name ?? "");
    if (holds) outer.own -= one.event.dur ?? 0;
    if (/^(If|Loop|Scan)$/.test(one.event.args?.op_name ?? "")) open.push(one);
  }
  return all.map(({ event, own }) => ({ event, own: Math.max(0, own) }));
}

/** Runs steps one after the other; with a prefix they are profiled, and the file is named. */
async function timeSteps(
  path: string,
  library: string | null,
  profilePrefix: string | null,
): Promise<{ readonly microseconds: number; readonly profile: string | null }> {
  const { model } = readModel(path);
  const signature = readSignature(model);
  const session = await openNativeSession(path, {
    ...(library === null ? {} : { library }),
    ...(profilePrefix === null ? {} : { profilePrefix }),
  });
  const binding = session.bind();
  try {
    const { tokens, logits, states } = signature;
    binding.input(tokens.name, integerMemory(tokens.dtype, [1, 1], [1]));
    const width = logits.shape.at(-1);
    if (typeof width !== "number") throw new Error(`${path}: the graph does not tell the vocabulary`);
    binding.output(logits.name, { dtype: "f32", shape: [1, 1, width], bytes: allocate(4 * width) });
    for (const pair of states) {
      const memory = new StateMemory(pair, 1, new Map(), true);
      binding.input(pair.input, memory.input(0, "all"));
      // Functions read a state more than once, so theirs is written elsewhere.
      const target = library === null ? new StateMemory(pair, 1, new Map(), true) : memory;
      binding.output(pair.output, target.output(1, "all"));
    }
    if (profilePrefix === null) for (let i = 0; i < STEPS; i++) binding.run();
    const before = process.cpuUsage();
    for (let i = 0; i < STEPS; i++) binding.run();
    const { user, system } = process.cpuUsage(before);
    const profile = profilePrefix === null ? null : session.endProfiling();
    return { microseconds: (user + system) / STEPS, profile };
  } finally {
    binding.close();
    session.close();
  }
}
