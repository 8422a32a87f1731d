/**
 * merge-pair: makes one graph of the prefill and the decode graph an exporter wrote for the same model.
 *
 * Purpose: prefill and decode are the same recurrence. Once both are raised, the prefill graph with state inputs serves
 * any number of tokens, so the decode graph only contributes the names of its states, and a check.
 * Method: layers are paired by the names of their state outputs, or by order. Every parameter (A, D, dt_bias, dt clamp,
 * convolution weights, sizes) must agree.
 * Refuses: pairs whose layers differ, and pairs that compute different logits when run on the same tokens (exit 4). Where
 * only the dt clamp differs, which transformers 5.18 exports do, the message names layer and values, and `trust` decides;
 * a clamp that differs but changes no logit by more than 1e-4 is a warning, and the prefill graph counts. So it does where
 * fewer layers were recognised in the decode graph and running both shows that they agree.
 *
 *     before   prefill: SelectiveScan(..., '') -> (y, output.s)      decode: SelectiveScan(..., input.s) -> (y, output.s)
 *     after    prefill, knowing that output.s goes back in as input.s
 */

import { type Graph, type Model, type Node, useIndex } from "../src/ir/graph.js";
import { toNumbers } from "../src/ir/tensor.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import {
  CONV_INPUT,
  type ConvOp,
  SCAN_INPUT,
  type ScanOp,
  type SemanticOp,
  scanNode,
  semanticOps,
} from "../src/rewrite/semantic.js";
import { EXIT, MambacError } from "../src/support/errors.js";

export const TRUSTS = ["prefill", "decode"] as const;
export type Trust = (typeof TRUSTS)[number];

export interface MergePairOptions {
  /** The decode graph, raised. */
  readonly decode: Model;
  readonly trust: Trust | null;
  /**
   * Runs both source graphs on the same tokens and gives the largest relative difference of their logits; null when that
   * cannot be done.
   */
  readonly measure: () => Promise<number | null>;
  /** Filled with input name by output name. */
  readonly names: Map<string, string>;
}

export const mergePair: Pass<MergePairOptions> = definePass({
  name: "merge-pair",
  summary: "check that prefill and decode describe the same layers and join them",
  exactness: "real-exact",
  requires: ["scan-raised", "conv-raised"],
  establishes: [],
  invalidates: [],
  async run(model, options, context) {
    const prefill = model.graph;
    const decode = options.decode.graph;
    for (const [present, past] of statePairs(decode)) options.names.set(present, past);
    const edit = new GraphEdit(prefill);
    const disagreements: string[] = [];
    let changed = 0;
    const { pairs, mismatch } = pairUp(prefill, decode);
    if (mismatch !== null) await requireAgreement(mismatch, options, context);
    for (const [ours, theirs] of pairs) {
      const clamp = compareOps(prefill, ours, decode, theirs);
      if (clamp === null || ours.kind !== "scan" || theirs.kind !== "scan") continue;
      disagreements.push(clamp);
      if (options.trust !== "decode") continue;
      const { dtMin, dtMax } = theirs;
      edit.swapNode(ours.node, scanNode({ ...ours, dtMin, dtMax }, ours.node.inputs, ours.node.outputs));
      changed += 1;
    }
    if (options.trust === null) await checkByRunning(options, disagreements, context);
    else {
      for (const text of disagreements) {
        context.report({
          kind: "warning",
          code: "merge-pair/trusted",
          where: "model",
          message: `${text}; trusting ${options.trust}`,
        });
      }
    }
    const graph = changed === 0 ? prefill : edit.commit();
    return { model: { ...model, graph }, changed: options.names.size };
  },
});

/** Relative difference of logits below which two graphs count as one model. */
const AGREEMENT = 1e-4;

async function checkByRunning(
  options: MergePairOptions,
  disagreements: readonly string[],
  context: PassContext,
): Promise<void> {
  const measured = await options.measure();
  const list = disagreements.map((text) => `\n  ${text}`).join("");
  const seen =
    measured === null
      ? ""
      : `\nRun on the same tokens, their logits differ by ${measured.toExponential(1)} of the largest.`;
  if (disagreements.length > 0 && (measured === null || measured > AGREEMENT)) {
    throw new MambacError(
      "merge-pair/disagree",
      `the prefill and the decode graph are not the same model:${list}${seen}\n` +
        "Say which one is right: --trust prefill or --trust decode.",
      EXIT.unsupported,
    );
  }
  if (measured !== null && measured > AGREEMENT) {
    throw different(`their layers look alike, but their logits differ by ${measured.toExponential(1)} of the largest`);
  }
  for (const text of disagreements) {
    context.report({
      kind: "warning",
      code: "merge-pair/harmless",
      where: "model",
      message: `${text}; run on the same tokens the logits agree to ${measured?.toExponential(1)}, so the prefill graph counts`,
    });
  }
}

/**
 * One graph may hold layers that were not recognised in the other: where both compute the same, what was recognised in the
 * prefill graph counts.
 */
async function requireAgreement(mismatch: string, options: MergePairOptions, context: PassContext): Promise<void> {
  const measured = await options.measure();
  if (measured === null || measured > AGREEMENT) throw different(mismatch);
  context.report({
    kind: "warning",
    code: "merge-pair/unrecognised",
    where: "model",
    message: `${mismatch}; run on the same tokens the logits agree to ${measured.toExponential(1)}, so the prefill graph counts`,
  });
}

/** Output name -> input name of every state a graph carries, attention caches included. */
function statePairs(graph: Graph): [present: string, past: string][] {
  const out: [string, string][] = [];
  for (const op of semanticOps(graph.nodes)) {
    const past =
      op.kind === "scan"
        ? op.node.inputs[SCAN_INPUT.past]
        : op.kind === "conv"
          ? op.node.inputs[CONV_INPUT.past]
          : undefined;
    const present = op.node.outputs[1];
    if (past !== undefined && past !== "" && present !== undefined && present !== "") out.push([present, past]);
  }
  const inputs = new Set(graph.inputs.map((input) => input.name));
  const { producer } = useIndex(graph);
  for (const output of graph.outputs) {
    const node = producer.get(output.name);
    const past = node?.op === "Concat" ? node.inputs.find((name) => inputs.has(name)) : undefined;
    if (past !== undefined) out.push([output.name, past]);
  }
  return out;
}

interface Pairing {
  readonly pairs: readonly (readonly [SemanticOp, SemanticOp])[];
  /** What one graph has more of, in words; pairs are then those of the same names alone. */
  readonly mismatch: string | null;
}

function pairUp(prefill: Graph, decode: Graph): Pairing {
  const pairs: [SemanticOp, SemanticOp][] = [];
  let mismatch: string | null = null;
  for (const kind of ["scan", "conv"] as const) {
    const ours = semanticOps(prefill.nodes).filter((op) => op.kind === kind);
    const theirs = semanticOps(decode.nodes).filter((op) => op.kind === kind);
    const even = ours.length === theirs.length;
    if (!even) {
      const counts = `the prefill graph has ${ours.length} ${what(kind)} and the decode graph ${theirs.length}`;
      // A layer that is known to have a state, and got none, would lose it.
      if (ours.length < theirs.length) throw different(counts);
      mismatch ??= counts;
    }
    const byName = new Map(theirs.map((op) => [op.node.outputs[1] ?? "", op]));
    ours.forEach((op, at) => {
      const partner = byName.get(op.node.outputs[1] || "-") ?? (even ? theirs[at] : undefined);
      if (partner !== undefined) pairs.push([op, partner]);
    });
  }
  return { pairs, mismatch };
}

function what(kind: "scan" | "conv"): string {
  return kind === "scan" ? "selective scans" : "causal convolutions";
}

function different(detail: string): MambacError {
  return new MambacError(
    "merge-pair/different",
    `the two files are not the prefill and the decode graph of one model: ${detail}`,
    EXIT.unsupported,
  );
}

/** Throws when the layers differ; returns a sentence when only their dt clamps do. */
function compareOps(prefill: Graph, ours: SemanticOp, decode: Graph, theirs: SemanticOp): string | null {
  if (ours.kind === "conv" && theirs.kind === "conv") {
    sameSizes(ours, theirs, ["channels", "kernelSize"]);
    sameWeights(
      prefill,
      ours.node,
      decode,
      theirs.node,
      ["weight", "bias"],
      [CONV_INPUT.weight, CONV_INPUT.bias],
      ours.layer,
    );
    return null;
  }
  if (ours.kind !== "scan" || theirs.kind !== "scan") return null;
  sameSizes(ours, theirs, ["heads", "headDim", "dState", "groups"]);
  sameWeights(
    prefill,
    ours.node,
    decode,
    theirs.node,
    ["A", "D", "dt_bias"],
    [SCAN_INPUT.A, SCAN_INPUT.D, SCAN_INPUT.dtBias],
    ours.layer,
  );
  const [a, b] = [clampText(ours), clampText(theirs)];
  return a === b ? null : `${ours.layer}: dt is ${a} in prefill and ${b} in decode`;
}

function clampText(op: ScanOp): string {
  // softplus is never negative, so a lower bound of 0 is no bound.
  const low = op.dtMin <= 0 ? null : op.dtMin;
  const high = Number.isFinite(op.dtMax) ? op.dtMax : null;
  if (low === null && high === null) return "not clamped";
  return `clamped to [${low ?? 0}, ${high ?? "inf"}]`;
}

function sameSizes<Op extends ScanOp | ConvOp>(ours: Op, theirs: Op, keys: readonly (keyof Op & string)[]): void {
  for (const key of keys) {
    if (ours[key] !== theirs[key])
      throw different(`${ours.layer}: ${key} is ${String(ours[key])} in prefill and ${String(theirs[key])} in decode`);
  }
}

function sameWeights(
  prefill: Graph,
  ours: Node,
  decode: Graph,
  theirs: Node,
  names: readonly string[],
  inputs: readonly number[],
  layer: string,
): void {
  inputs.forEach((input, at) => {
    const a = prefill.initializers.get(ours.inputs[input] ?? "");
    const b = decode.initializers.get(theirs.inputs[input] ?? "");
    if (a === undefined || b === undefined) return;
    const [x, y] = [toNumbers(a), toNumbers(b)];
    for (let i = 0; i < x.length; i++) {
      const [left, right] = [x[i] ?? 0, y[i] ?? 0];
      if (Math.abs(left - right) > 1e-6 * Math.max(1e-3, Math.abs(left))) {
        throw different(`${layer}: ${names[at]}[${i}] is ${left} in prefill and ${right} in decode`);
      }
    }
  });
}
