/**
 * Finds regions that look like a selective scan, whatever wrote them: decode step, unrolled chain, chunked SSD,
 * LinearAttention, Loop or Scan.
 *
 * Matching is loose on purpose, since every candidate is proved by execution (`scan-proof.ts`). The anchor is a softplus
 * whose input is dt plus a bias. From dt the walk goes forward through nodes of the scan's algebra. Every other operand is
 * data-free, or the state, or goes back through layout changes to one of three roots: x, B and C. The first node that
 * needs a fourth root (the gate, the norm, the next projection) is outside, so what enters it is y.
 */

import { attrString, dependencies, type Node, qualifiedOp } from "../ir/graph.js";
import { isFloat } from "../ir/tensor.js";
import { concrete } from "./axes.js";
import { type ScanForm, scanForm } from "./scan-form.js";
import { softplusValues } from "./softplus.js";
import type { Tracer } from "./trace.js";

const ALGEBRA = new Set(
  (
    "Mul Add Sub Div Exp Neg Softplus Log Greater GreaterOrEqual Less LessOrEqual Where Clip Min Max Abs CumSum Einsum MatMul " +
    "ReduceSum Reshape Transpose Unsqueeze Squeeze Flatten Expand Tile Pad Slice Split Gather Concat Cast CastLike Identity Trilu " +
    "Loop Scan SequenceInsert SequenceConstruct ConcatFromSequence ScatterND ScatterElements LinearAttention " +
    "com.microsoft.LinearAttention"
  ).split(" "),
);

/** A candidate region; every name is a value of the graph. */
export interface ScanRegion {
  readonly form: ScanForm;
  readonly anchor: Node;
  /** Before bias and softplus. */
  readonly dt: string;
  /** Data-free addend of dt, or null. */
  readonly dtBias: string | null;
  /** Roots of x, B and C, in an order yet to be found out. */
  readonly roots: readonly string[];
  /** Graph input that is the state before the first token, or null for the zero state. */
  readonly pastState: string | null;
  /** Values the rest of the graph reads: y is one of them or close above one. */
  readonly exits: readonly string[];
  /** Inside values in reverse order, for trying other ends. */
  readonly inside: readonly string[];
  /** Data-free operands of inside nodes: A is among them, and D. */
  readonly weights: readonly string[];
  /** Bounds that a Clip, Min or Max puts on a value of dt's size. */
  readonly clamps: readonly { readonly low: number; readonly high: number; readonly value: string }[];
  readonly nodes: readonly Node[];
}

/** Something that starts like a scan and then reads too few or too many values to be one. */
export interface NearMiss {
  readonly anchor: Node;
  readonly dt: string;
  readonly reason: string;
}

/** All candidate regions of the graph, and what came close, in graph order. */
export function findScanRegions(tracer: Tracer): {
  readonly regions: readonly ScanRegion[];
  readonly misses: readonly NearMiss[];
} {
  const regions: ScanRegion[] = [];
  const misses: NearMiss[] = [];
  const taken = new Set<Node>();
  for (const { node, of } of softplusValues(tracer.graph)) {
    if (taken.has(node)) continue;
    const region = growRegion(tracer, node, of);
    if (region === null) continue;
    if ("reason" in region) {
      misses.push(region);
      continue;
    }
    for (const member of region.nodes) taken.add(member);
    regions.push(region);
  }
  for (const node of tracer.graph.nodes) {
    if (node.op !== "LinearAttention" || taken.has(node)) continue;
    misses.push({ anchor: node, dt: "", reason: "its decay is no product of a softplus and a weight" });
  }
  return { regions, misses };
}

/** dt before its bias, and the bias. */
function splitBias(tracer: Tracer, value: string): { dt: string; bias: string | null } {
  const root = tracer.root(value);
  const node = tracer.index.producer.get(root);
  if (node?.op === "Add" && node.domain === "") {
    const [a, b] = node.inputs;
    if (a !== undefined && b !== undefined) {
      if (tracer.free.has(b) && !tracer.free.has(a)) return { dt: tracer.root(a), bias: b };
      if (tracer.free.has(a) && !tracer.free.has(b)) return { dt: tracer.root(b), bias: a };
    }
  }
  return { dt: root, bias: null };
}

function growRegion(tracer: Tracer, anchor: Node, softplusOf: string): ScanRegion | NearMiss | null {
  const { graph, index, free } = tracer;
  if (free.has(softplusOf)) return null;
  const { dt, bias } = splitBias(tracer, softplusOf);
  const inside = new Set<string>([dt]);
  const accepted = new Set<Node>();
  const roots = new Set<string>();
  const weights = new Set<string>();
  let pastState: string | null = null as string | null;
  const start = dt === "" ? 0 : (index.position.get(index.producer.get(dt) ?? anchor) ?? 0);
  let horizon = furthestUser(tracer, dt);
  for (let at = start; at < graph.nodes.length && at <= horizon; at++) {
    const node = graph.nodes[at];
    if (node === undefined || !ALGEBRA.has(qualifiedOp(node))) continue;
    const reads = dependencies(node);
    if (!reads.some((name) => inside.has(name))) continue;
    const newRoots = new Set<string>();
    const newWeights: string[] = [];
    let state: string | null = pastState;
    const fits = reads.every((name) => {
      if (inside.has(name)) return true;
      if (free.has(name)) {
        newWeights.push(name);
        return node.op !== "MatMul" && !contracts(node);
      }
      return leavesOf(tracer, name).every((root) => {
        if (inside.has(root)) return true;
        if (roots.has(root) || newRoots.has(root)) return true;
        if (isStateInput(tracer, root)) {
          if (state !== null && state !== root) return false;
          state = root;
          return true;
        }
        const skip = skipWeight(tracer, root, roots);
        if (skip !== null) {
          newWeights.push(skip);
          return true;
        }
        if (roots.size + newRoots.size >= 3) return false;
        newRoots.add(root);
        return true;
      });
    });
    if (!fits) continue;
    pastState = state;
    for (const root of newRoots) roots.add(root);
    for (const weight of newWeights) weights.add(weight);
    accepted.add(node);
    for (const output of node.outputs) {
      if (output === "") continue;
      inside.add(output);
      horizon = Math.max(horizon, furthestUser(tracer, output));
    }
  }
  const nodes = [...accepted];
  const form = scanForm(tracer, dt, nodes);
  if (form === null) return null;
  if (roots.size !== 3) {
    const found = roots.size === 0 ? "none" : [...roots].join(", ");
    return { anchor, dt, reason: `beside dt a scan reads x, B and C; of such values there is here: ${found}` };
  }
  const values = nodes.flatMap((node) => node.outputs.filter((name) => name !== ""));
  const exits = values.filter((name) => index.outputs.has(name) || isReadOutside(tracer, name, accepted));
  return {
    form,
    anchor,
    dt,
    dtBias: bias,
    roots: [...roots],
    pastState,
    exits,
    inside: values.reverse(),
    weights: [...weights],
    clamps: nodes.flatMap((node) => clampOf(tracer, node)),
    nodes,
  };
}

/** Roots behind an operand; a contraction of token data that dt takes no part in (C B^T) counts as its factors. */
function leavesOf(tracer: Tracer, name: string, depth: number = 0): string[] {
  const root = tracer.root(name);
  const node = tracer.index.producer.get(root);
  if (node === undefined || depth > 3 || node.domain !== "") return [root];
  if (node.op === "ReduceSum") {
    const product = tracer.index.producer.get(tracer.root(node.inputs[0] ?? ""));
    return product?.op === "Mul" && product.inputs.every((input) => !tracer.free.has(input))
      ? product.inputs.flatMap((input) => leavesOf(tracer, input, depth + 1))
      : [root];
  }
  if ((node.op !== "Einsum" && node.op !== "MatMul") || node.inputs.some((input) => tracer.free.has(input)))
    return [root];
  return node.inputs.flatMap((input) => leavesOf(tracer, input, depth + 1));
}

/** An Einsum that sums over something, so that a weight in it is a projection; dt times A spelled as one sums over nothing. */
function contracts(node: Node): boolean {
  if (node.op !== "Einsum") return false;
  const [from = "", to = ""] = attrString(node, "equation", "").replaceAll(" ", "").split("->");
  return Array.from(from).some((letter) => /[A-Za-z]/.test(letter) && !to.includes(letter));
}

function furthestUser(tracer: Tracer, name: string): number {
  const last = tracer.index.users.get(name)?.at(-1);
  return last === undefined ? -1 : (tracer.index.position.get(last) ?? -1);
}

function isReadOutside(tracer: Tracer, name: string, accepted: ReadonlySet<Node>): boolean {
  const users = tracer.index.users.get(name) ?? [];
  return users.some((user) => !accepted.has(user) && user.op !== "Shape" && user.op !== "Size");
}

/** A float graph input of rank 3 or more that is not per-token data. */
function isStateInput(tracer: Tracer, name: string): boolean {
  if (!tracer.graph.inputs.some((input) => input.name === name) || tracer.graph.initializers.has(name)) return false;
  const value = concrete(tracer.view, name);
  return value?.shape != null && value.dtype !== null && isFloat(value.dtype) && value.shape.length >= 3;
}

/** D in `D * x`, where x is a known root. */
function skipWeight(tracer: Tracer, name: string, roots: ReadonlySet<string>): string | null {
  const node = tracer.index.producer.get(name);
  if (node?.op !== "Mul" || node.domain !== "") return null;
  const [a, b] = node.inputs;
  if (a === undefined || b === undefined) return null;
  if (tracer.free.has(a) && roots.has(tracer.root(b))) return a;
  if (tracer.free.has(b) && roots.has(tracer.root(a))) return b;
  return null;
}

function clampOf(tracer: Tracer, node: Node): ScanRegion["clamps"] {
  const scalar = (name: string | undefined): number | null => {
    if (name === undefined || name === "") return null;
    const value = concrete(tracer.view, name);
    return value?.content?.length === 1 ? (value.content[0] ?? null) : null;
  };
  const value = node.outputs[0] ?? "";
  if (node.op === "Clip") {
    return [
      {
        low: scalar(node.inputs[1]) ?? Number.NEGATIVE_INFINITY,
        high: scalar(node.inputs[2]) ?? Number.POSITIVE_INFINITY,
        value,
      },
    ];
  }
  if ((node.op === "Max" || node.op === "Min") && node.inputs.length === 2) {
    const bound = scalar(node.inputs[0]) ?? scalar(node.inputs[1]);
    if (bound === null) return [];
    return node.op === "Max"
      ? [{ low: bound, high: Number.POSITIVE_INFINITY, value }]
      : [{ low: Number.NEGATIVE_INFINITY, high: bound, value }];
  }
  return [];
}
