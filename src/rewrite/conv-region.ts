/**
 * Finds and proves causal depthwise convolutions: Conv, Mul + ReduceSum over a rolled state, or CausalConvWithState,
 * each with its bias, its SiLU and its state.
 */

import { attrInt, attrString, type Node, qualifiedOp } from "../ir/graph.js";
import { isFloat, type Tensor, toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { causalConvReference } from "../ops/reference.js";
import { concrete } from "./axes.js";
import { aboveLayout, type Layout, layoutsOf, toCanonical } from "./layout.js";
import { cutRegion, type ExecuteGraph, evaluateConstants, tensorFromNumbers } from "./region.js";
import { Sampler } from "./sampler.js";
import { PROOF_TOLERANCE, relativeError, type Trial } from "./scan-proof.js";
import type { Tracer } from "./trace.js";

export type ConvForm = "conv" | "sum" | "fused";

export interface ConvRegion {
  readonly form: ConvForm;
  readonly anchor: Node;
  readonly x: string;
  readonly weight: string;
  readonly kernelSize: number;
  readonly channels: number;
  readonly pastState: string | null;
  readonly presentState: string | null;
  /** Data-free vectors that may be the bias. */
  readonly biases: readonly string[];
  /** Values that may be the result, deepest first. */
  readonly ends: readonly string[];
}

export interface ProvedConv {
  readonly region: ConvRegion;
  readonly x: { readonly name: string; readonly layout: Layout };
  readonly y: { readonly name: string; readonly layout: Layout };
  /** [E, 1, K]. */
  readonly weight: Float64Array;
  readonly bias: Float64Array | null;
  readonly activation: "none" | "silu";
  /** Columns of the public state; null when the graph has none. */
  readonly stateWidth: number | null;
  readonly error: number;
  readonly lengths: readonly number[];
}

const AFTER_CONV = new Set("Slice Add Cast Identity Sigmoid Mul Squeeze Unsqueeze Gather Transpose".split(" "));

/** All candidate convolutions of the graph, in graph order. */
export function findConvRegions(tracer: Tracer): ConvRegion[] {
  const stateOutputs = new Map<string, string[]>();
  for (const output of tracer.graph.outputs) {
    const shape = concrete(tracer.view, output.name)?.shape;
    if (shape?.length !== 3) continue;
    const { x } = streamOf(tracer, output.name);
    stateOutputs.set(x, [...(stateOutputs.get(x) ?? []), output.name]);
  }
  return tracer.graph.nodes.flatMap((node) => {
    const region = regionAt(tracer, node, stateOutputs);
    return region === null ? [] : [region];
  });
}

function regionAt(tracer: Tracer, node: Node, stateOutputs: ReadonlyMap<string, readonly string[]>): ConvRegion | null {
  const start = anchorOf(tracer, node);
  if (start === null) return null;
  const stream = streamOf(tracer, start.input);
  const past = start.past ?? stream.past;
  const channels = elementCount(concrete(tracer.view, start.weight)?.shape ?? []) / start.kernelSize;
  const { ends, biases } = followResult(tracer, node, start.result);
  const present =
    publicName(tracer, start.present) ??
    (stateOutputs.get(stream.x) ?? []).find((name) => {
      const shape = concrete(tracer.view, name)?.shape;
      return shape?.[1] === channels && !ends.includes(name);
    }) ??
    null;
  return {
    form: start.form,
    anchor: node,
    x: stream.x,
    weight: start.weight,
    kernelSize: start.kernelSize,
    channels,
    pastState: past,
    presentState: present,
    biases: [...start.biases, ...biases],
    ends,
  };
}

/** The output of the graph that a value becomes, perhaps after a Cast. */
function publicName(tracer: Tracer, name: string | null): string | null {
  for (let at = name; at !== null && at !== ""; ) {
    if (tracer.index.outputs.has(at)) return at;
    const users: readonly Node[] = tracer.index.users.get(at) ?? [];
    at = users.find((user) => user.op === "Cast" || user.op === "Identity")?.outputs[0] ?? null;
  }
  return null;
}

interface Anchor {
  readonly form: ConvForm;
  readonly input: string;
  readonly weight: string;
  readonly kernelSize: number;
  readonly result: string;
  readonly biases: readonly string[];
  readonly past: string | null;
  readonly present: string | null;
}

function anchorOf(tracer: Tracer, node: Node): Anchor | null {
  const [input, weight, bias, past] = node.inputs;
  const result = node.outputs[0];
  if (input === undefined || weight === undefined || result === undefined || tracer.free.has(input)) return null;
  const biases = bias === undefined || bias === "" ? [] : [bias];
  const shape = tracer.free.has(weight) ? concrete(tracer.view, weight)?.shape : null;
  const taps = shape?.[2];
  if (node.op === "Conv" && node.domain === "" && shape?.length === 3 && shape[1] === 1 && taps !== undefined) {
    const depthwise = attrInt(node, "group", 1) === shape[0] && taps > 1 && noStride(node);
    return depthwise
      ? { form: "conv", input, weight, kernelSize: taps, result, biases, past: null, present: null }
      : null;
  }
  if (node.op === "CausalConvWithState" && /^(com\.microsoft)?$/.test(node.domain) && taps !== undefined) {
    if (attrInt(node, "dilation", 1) !== 1 || attrInt(node, "channels_last", 0) !== 0) return null;
    return {
      form: "fused",
      input,
      weight,
      kernelSize: taps,
      result,
      biases,
      past: past === undefined || past === "" ? null : past,
      present: node.outputs[1] ?? null,
    };
  }
  return qualifiedOp(node) === "Mul" ? sumAnchor(tracer, node) : null;
}

function noStride(node: Node): boolean {
  const ones = (name: string): boolean => {
    const attribute = node.attributes.get(name);
    return attribute?.kind !== "ints" || attribute.value.every((value) => value === 1n);
  };
  return ones("strides") && ones("dilations") && attrString(node, "auto_pad", "NOTSET") === "NOTSET";
}

/** Mul(stream [B,E,K], weight) -> ReduceSum over the taps. */
function sumAnchor(tracer: Tracer, node: Node): Anchor | null {
  const [a, b] = node.inputs;
  if (a === undefined || b === undefined) return null;
  const [input, weight] = tracer.free.has(b) ? [a, b] : [b, a];
  if (!tracer.free.has(weight) || tracer.free.has(input)) return null;
  const shape = concrete(tracer.view, input)?.shape;
  const sum = (tracer.index.users.get(node.outputs[0] ?? "") ?? []).find((user) => user.op === "ReduceSum");
  const result = sum?.outputs[0];
  const taps = shape?.[2];
  const channels = shape?.[1];
  if (shape?.length !== 3 || result === undefined || taps === undefined || channels === undefined) return null;
  if (elementCount(concrete(tracer.view, weight)?.shape ?? []) !== taps * channels || taps < 2 || taps > 16)
    return null;
  if (streamOf(tracer, input).past === null) return null;
  return { form: "sum", input, weight, kernelSize: taps, result, biases: [], past: null, present: null };
}

/** Where the columns of a stream come from: `past` is a graph input, `x` the new columns. */
function streamOf(tracer: Tracer, name: string): { x: string; past: string | null } {
  let at = tracer.root(name);
  for (;;) {
    const node = tracer.index.producer.get(at);
    if (node?.op === "Slice" && node.inputs[0] !== undefined) {
      at = tracer.root(node.inputs[0]);
      const behind = tracer.index.producer.get(at);
      if (behind?.op !== "Concat") return { x: tracer.root(name), past: null };
      continue;
    }
    if (node?.op === "Concat" && node.inputs.length === 2) {
      const parts = node.inputs.map((part) => ({ part, root: tracer.root(part) }));
      const past = parts.find(({ root }) => isState(tracer, root) || tracer.free.has(root));
      const fresh = parts.find((part) => part !== past);
      if (past === undefined || fresh === undefined) return { x: at, past: null };
      return { x: fresh.root, past: tracer.free.has(past.root) ? null : past.root };
    }
    return { x: at, past: null };
  }
}

function isState(tracer: Tracer, name: string): boolean {
  const value = concrete(tracer.view, name);
  const isInput = tracer.graph.inputs.some((input) => input.name === name);
  return isInput && value?.shape?.length === 3 && value.dtype !== null && isFloat(value.dtype);
}

/** Walks from the convolution to everything that is still it: the cut to length, a bias, SiLU. */
function followResult(tracer: Tracer, anchor: Node, result: string): { ends: string[]; biases: string[] } {
  const inside = new Set<string>([result]);
  const biases: string[] = [];
  const { graph, index, free } = tracer;
  let horizon = lastUse(tracer, result);
  for (let at = (index.position.get(anchor) ?? 0) + 1; at <= horizon; at++) {
    const node = graph.nodes[at];
    if (node === undefined || node.domain !== "" || !AFTER_CONV.has(node.op)) continue;
    const reads = node.inputs.filter((name) => name !== "");
    if (!reads.some((name) => inside.has(name)) || !reads.every((name) => inside.has(name) || free.has(name))) continue;
    if (node.op === "Add") biases.push(...reads.filter((name) => free.has(name)));
    for (const output of node.outputs) {
      inside.add(output);
      horizon = Math.max(horizon, lastUse(tracer, output));
    }
  }
  return { ends: [...inside].reverse(), biases };
}

function lastUse(tracer: Tracer, name: string): number {
  const last = tracer.index.users.get(name)?.at(-1);
  return last === undefined ? -1 : (tracer.index.position.get(last) ?? -1);
}

/** Runs every reading of the region against the reference; the first trial must be the tracer's own view. */
export async function proveConv(
  tracer: Tracer,
  region: ConvRegion,
  trials: readonly Trial[],
  execute: ExecuteGraph,
): Promise<
  | { readonly kind: "proved"; readonly conv: ProvedConv }
  | { readonly kind: "refused"; readonly reason: string; readonly error: number | null }
> {
  const { channels, kernelSize } = region;
  const inputs = layoutsOf(tracer.view, region.x).filter((layout) => layout.channels === channels);
  if (inputs.length === 0)
    return { kind: "refused", reason: `${region.x} is not a per-token value of ${channels} channels`, error: null };
  const constants = await evaluateConstants(
    tracer.graph,
    tracer.view.first,
    [region.weight, ...region.biases],
    execute,
  );
  const weightTensor = constants.get(region.weight);
  if (weightTensor === undefined) return { kind: "refused", reason: "its weight cannot be evaluated", error: null };
  const weight = toNumbers(weightTensor);
  const biases = [...region.biases.map((name) => vector(constants.get(name), channels)), null].filter(
    (bias) => bias !== undefined,
  );
  let best: number | null = null;
  let trouble: string | null = null;
  for (const end of region.ends) {
    const results = layoutsOf(tracer.view, end).filter((layout) => layout.channels === channels);
    if (results.length === 0) continue;
    const runs = await runTrials(tracer, region, end, trials, execute);
    if (typeof runs === "string") {
      trouble = runs;
      continue;
    }
    const readings = biases.flatMap((bias) =>
      (["silu", "none"] as const).flatMap((activation) =>
        inputs.flatMap((x) => results.map((y) => ({ x, y, weight, bias, activation, kernelSize, end }))),
      ),
    );
    for (const reading of readings) {
      const worst = runs.reduce((error, run) => Math.max(error, compare(region, reading, run)), 0);
      best = Math.min(best ?? Number.POSITIVE_INFINITY, worst);
      if (worst > PROOF_TOLERANCE) continue;
      const { bias, activation } = reading;
      const stateName = region.pastState ?? region.presentState;
      const stateWidth = stateName === null ? null : (concrete(tracer.view, stateName)?.shape?.[2] ?? null);
      return {
        kind: "proved",
        conv: {
          region,
          x: { name: region.x, layout: reading.x },
          y: aboveLayout(tracer, end, reading.y),
          weight,
          bias,
          activation,
          stateWidth,
          error: worst,
          lengths: runs.map((run) => run.trial.sizes.length),
        },
      };
    }
  }
  return { kind: "refused", reason: trouble ?? "no reading of it is a causal convolution", error: best };
}

function vector(tensor: Tensor | undefined, channels: number): Float64Array | undefined {
  return tensor !== undefined && elementCount(tensor.shape) === channels ? toNumbers(tensor) : undefined;
}

interface Run {
  readonly trial: Trial;
  readonly feeds: ReadonlyMap<string, Tensor>;
  readonly outputs: ReadonlyMap<string, Tensor>;
}

async function runTrials(
  tracer: Tracer,
  region: ConvRegion,
  end: string,
  trials: readonly Trial[],
  execute: ExecuteGraph,
): Promise<Run[] | string> {
  const runs: Run[] = [];
  const leaves = [region.x, ...(region.pastState === null ? [] : [region.pastState])];
  const outputs = [end, ...(region.presentState === null ? [] : [region.presentState])];
  for (const trial of trials) {
    const cut = cutRegion(tracer.graph, trial.inference, leaves, outputs);
    if (cut.kind === "open") return cut.reason;
    const unread = leaves.find((name) => !cut.leaves.some((leaf) => leaf.name === name));
    if (unread !== undefined) return `${end} does not depend on ${unread}`;
    const sampler = new Sampler(`${region.x}/${trial.sizes.batch}/${trial.sizes.length}`);
    const feeds = new Map(
      cut.leaves.map((leaf) => [
        leaf.name,
        tensorFromNumbers(leaf.dtype, leaf.shape, sampler.normal(elementCount(leaf.shape))),
      ]),
    );
    try {
      runs.push({ trial, feeds, outputs: await execute(cut.graph, feeds) });
    } catch (cause) {
      if (runs.length === 0) return cause instanceof Error ? cause.message : String(cause);
      break;
    }
  }
  return runs;
}

function compare(
  region: ConvRegion,
  reading: {
    readonly x: Layout;
    readonly y: Layout;
    readonly weight: Float64Array;
    readonly bias: Float64Array | null;
    readonly activation: "none" | "silu";
    readonly kernelSize: number;
    readonly end: string;
  },
  run: Run,
): number {
  const { batch, length } = run.trial.sizes;
  const { channels } = region;
  const input = run.feeds.get(region.x);
  const past = region.pastState === null ? undefined : run.feeds.get(region.pastState);
  const present = region.presentState === null ? undefined : run.outputs.get(region.presentState);
  const result = run.outputs.get(reading.end);
  if (input === undefined || result === undefined) return Number.POSITIVE_INFINITY;
  const width = past?.shape[2] ?? present?.shape[2] ?? reading.kernelSize - 1;
  const reference = causalConvReference({
    batch,
    channels,
    length,
    kernelSize: reading.kernelSize,
    stateWidth: Math.max(width, reading.kernelSize - 1),
    activation: reading.activation,
    x: channelsFirst(toCanonical(reading.x, toNumbers(input), batch, length), batch, length, channels),
    weight: reading.weight,
    bias: reading.bias,
    past: past === undefined ? null : toNumbers(past),
  });
  const actual = channelsFirst(toCanonical(reading.y, toNumbers(result), batch, length), batch, length, channels);
  let error = relativeError(actual, reference.y);
  // A trace of fewer tokens than the state is wide leaves a narrow state behind; it cannot be compared.
  if (present !== undefined && present.shape[2] === width && (past !== undefined || length >= width)) {
    error = Math.max(error, relativeError(toNumbers(present), reference.state));
  }
  return error;
}

/** [B, L, E] -> [B, E, L]. */
function channelsFirst(data: Float64Array, batch: number, length: number, channels: number): Float64Array {
  const out = new Float64Array(data.length);
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t < length; t++) {
      for (let c = 0; c < channels; c++)
        out[(b * channels + c) * length + t] = data[(b * length + t) * channels + c] ?? 0;
    }
  }
  return out;
}
