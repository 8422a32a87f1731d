/**
 * smooth-quant: moves activation outliers into the weights, channel by channel, so that both quantize well.
 *
 * Paper: SmoothQuant (Xiao et al. 2023), with the pairs that are legal in Mamba blocks.
 * Algebra: (x / s)(diag(s) W) = x W, with s_j = max|x_j|^alpha / max_i|W_ji|^(1-alpha). Where 1/s goes:
 *
 * | input of | takes 1/s | id |
 * |---|---|---|
 * | in_proj, attention and MLP projections, head | the gain of the norm before them (a new gain where it was absorbed) | F1 |
 * | out_proj, Mamba-2 | the gain of the gated norm | F10 |
 * | out_proj, Mamba-1 | the gate columns of in_proj, with SiLU(z) = s v sigmoid(s v), v = z / s | F9 |
 * | dt_proj | the dt columns of x_proj | F7 |
 *
 * Refuses: inputs that something else reads too (x of Mamba-1 feeds x_proj and the scan); F9 on Mamba-2, where the gate
 * feeds a norm.
 *
 *     before   Mul(gamma, n) -> MatMul(W)
 *     after    Mul(gamma / s, n) -> MatMul(diag(s) W)
 */

import { type Graph, type Model, makeNode } from "../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../src/ir/tensor.js";
import { viewGraph } from "../src/rewrite/axes.js";
import { onlyReaders } from "../src/rewrite/column-uses.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { layoutOf } from "../src/rewrite/layout.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import { reweight } from "../src/rewrite/reweight.js";
import { type LinearRole, type LinearSite, type MambaBlock, Sites } from "../src/rewrite/sites.js";
import { mainOpset } from "../src/rewrite/trials.js";
import { scaledWeight, weightValues } from "../src/rewrite/weights.js";

export interface SmoothQuantOptions {
  /** 0 leaves the weights alone, 1 flattens the activations. */
  readonly alpha: number;
  /** Projections whose inputs are smoothed. */
  readonly roles: ReadonlySet<LinearRole>;
  /** Largest magnitude of each channel (last axis) of an activation, from calibration. */
  readonly channelAbsMax: (value: string) => Float64Array;
}

const SMALLEST_SCALE = 1e-5;
const LARGEST_SCALE = 1e4;
/** A channel that calibration never saw moving is left alone: its scale would only inflate the weights. */
const DEAD_CHANNEL = 1e-8;

export const smoothQuant: Pass<SmoothQuantOptions> = definePass({
  name: "smooth-quant",
  summary: "move activation outliers into the weights of the projections that read them",
  exactness: "real-exact",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  run(model, options, context) {
    let { graph } = model;
    let changed = 0;
    for (const apply of [smoothNorms, smoothGates, smoothLowRankDt]) {
      const sites = new Sites(viewGraph(graph, mainOpset(model)));
      const edit = new GraphEdit(graph);
      const count = apply(sites, edit, options, context);
      if (count > 0) graph = edit.commit();
      changed += count;
    }
    return Promise.resolve({ model: { ...model, graph }, changed });
  },
});

/** The activations whose channels must be calibrated. */
export function smoothedInputs(model: Model, roles: ReadonlySet<LinearRole>): string[] {
  const sites = new Sites(viewGraph(model.graph, mainOpset(model)));
  const names = new Set<string>();
  for (const site of sites.linears)
    if (roles.has(site.role) && sites.normOf(site.input) !== null) names.add(site.input);
  for (const block of sites.blocks) {
    if (roles.has("out_proj") && isGatedWithoutNorm(sites, block) && block.outProj !== null)
      names.add(block.outProj.input);
    if (roles.has("dt_proj") && lowRankColumns(sites, block) !== null && block.dtProj !== null)
      names.add(block.dtProj.input);
  }
  return [...names];
}

function largestByRow(graph: Graph, readers: readonly LinearSite[]): Float64Array {
  const rows = readers[0]?.inFeatures ?? 0;
  const out = new Float64Array(rows);
  for (const { weight, outFeatures } of readers) {
    const tensor = graph.initializers.get(weight);
    if (tensor === undefined) continue;
    const values = weightValues(tensor);
    for (let i = 0; i < rows; i++) {
      let largest = out[i] ?? 0;
      for (let j = 0; j < outFeatures; j++) largest = Math.max(largest, Math.abs(values[i * outFeatures + j] ?? 0));
      out[i] = largest;
    }
  }
  return out;
}

/** s, one factor a channel. */
export function smoothingVector(activation: Float64Array, weight: Float64Array, alpha: number): Float64Array {
  return activation.map((largest, channel) => {
    const row = weight[channel] ?? 0;
    if (largest < DEAD_CHANNEL || row < DEAD_CHANNEL) return 1;
    return Math.min(LARGEST_SCALE, Math.max(SMALLEST_SCALE, largest ** alpha / row ** (1 - alpha)));
  });
}

/** Multiplies the rows of the readers' weights, and lets them read `input` if there is one. */
function scaleRows(
  edit: GraphEdit,
  graph: Graph,
  readers: readonly LinearSite[],
  scale: Float64Array,
  input: string | null = null,
): void {
  for (const reader of readers) {
    const tensor = graph.initializers.get(reader.weight);
    if (tensor === undefined) continue;
    reweight(edit, reader, "smooth", scaledWeight(tensor, scale, null), input ?? reader.input);
  }
}

function smoothNorms(sites: Sites, edit: GraphEdit, options: SmoothQuantOptions, context: PassContext): number {
  const { graph } = sites;
  const handled = new Set<string>();
  let changed = 0;
  for (const site of sites.linears) {
    const norm = options.roles.has(site.role) ? sites.normOf(site.input) : null;
    if (norm === null || handled.has(norm.output)) continue;
    handled.add(norm.output);
    const readers = sites.readersOf(norm.output);
    if (readers === null) {
      context.report({
        kind: "missed",
        code: "smooth-quant/shared",
        where: norm.output,
        message: "something other than a projection reads the norm, so its outliers stay",
      });
      continue;
    }
    const scale = smoothingVector(options.channelAbsMax(site.input), largestByRow(graph, readers), options.alpha);
    const tensor = norm.gain === null ? undefined : graph.initializers.get(norm.gain.gain);
    const old = tensor === undefined ? Float64Array.of(1) : toNumbers(tensor);
    const channels = scale.length;
    if ((old.length !== 1 && old.length !== channels) || (tensor?.shape.length ?? 0) > 1) {
      context.report({
        kind: "missed",
        code: "smooth-quant/gain",
        where: norm.output,
        message: "the gain of the norm is not one factor a channel, so its outliers stay",
      });
      continue;
    }
    const name = edit.unused(`${norm.output}.smooth_gain`);
    // A gain of one number becomes one for each channel.
    const gains = scale.map((value, channel) => (old[old.length === 1 ? 0 : channel] ?? 1) / value);
    edit.addInitializers(new Map([[name, f32Tensor([channels], gains)]]));
    if (norm.gain === null) {
      const output = edit.unused(`${norm.output}.smooth`);
      edit.addNodes([makeNode("Mul", [norm.output, name], [output])]);
      scaleRows(edit, graph, readers, scale, output);
    } else {
      const { node, gainInput } = norm.gain;
      edit.swapNode(node, { ...node, inputs: node.inputs.map((input, at) => (at === gainInput ? name : input)) });
      scaleRows(edit, graph, readers, scale);
    }
    changed += 1;
  }
  return changed;
}

/** Mamba-1: the gate goes straight into out_proj, and nothing else reads it or its columns. */
function isGatedWithoutNorm(sites: Sites, block: MambaBlock): boolean {
  const { gate, outProj, gateColumns } = block;
  return (
    gate !== null &&
    outProj !== null &&
    gateColumns !== null &&
    block.scan.family === "mamba1" &&
    sites.leadsOnlyTo(gate.silu, gate.node) &&
    sites.leadsOnlyTo(gate.node, outProj.node) &&
    onlyReaders(sites, gateColumns.linear, gateColumns.from, gateColumns.to, [gate.silu, gate.sigmoid])
  );
}

function smoothGates(sites: Sites, edit: GraphEdit, options: SmoothQuantOptions, context: PassContext): number {
  const { graph } = sites;
  let changed = 0;
  for (const block of sites.blocks) {
    const { gate, outProj, gateColumns } = block;
    if (!options.roles.has("out_proj") || block.scan.family !== "mamba1") continue;
    const z = gate === null ? null : layoutOf(sites.view, gate.z);
    const weight = graph.initializers.get(gateColumns?.linear.weight ?? "");
    const straight = isGatedWithoutNorm(sites, block) && z?.fixed.length === 1;
    if (!straight || gate === null || outProj === null || gateColumns === null || weight === undefined || z === null) {
      context.report({
        kind: "missed",
        code: "smooth-quant/gate",
        where: block.layer,
        message: "the gate does not come straight from in_proj, or has another reader, so out_proj keeps its outliers",
      });
      continue;
    }
    const scale = smoothingVector(options.channelAbsMax(outProj.input), largestByRow(graph, [outProj]), options.alpha);
    scaleRows(edit, graph, [outProj], scale);
    const { linear, from } = gateColumns;
    const columns = new Float64Array(linear.outFeatures).fill(1);
    scale.forEach((value, channel) => {
      columns[from + channel] = 1 / value;
    });
    reweight(edit, linear, "gate", scaledWeight(weight, null, columns));
    const after = z.axes.length - 1 - z.axes.indexOf("fixed");
    const factor = edit.unused(`${gate.z}.smooth_scale`);
    edit.addInitializers(new Map([[factor, f32Tensor([scale.length, ...new Array<number>(after).fill(1)], scale)]]));
    const restored = edit.unused(`${gate.z}.restored`);
    edit.addNodes([makeNode("Mul", [gate.z, factor], [restored])]);
    edit.swapNode(gate.sigmoid, { ...gate.sigmoid, inputs: [restored] });
    changed += 1;
  }
  return changed;
}

/** Columns of x_proj that are dt_proj's input and nothing else; null with a norm or a bias in between. */
function lowRankColumns(sites: Sites, block: MambaBlock): { from: number } | null {
  const { dtProj, xProj } = block;
  if (dtProj === null || xProj === null) return null;
  const columns = sites.source(dtProj.input);
  return columns !== null &&
    columns.linear.node === xProj.node &&
    onlyReaders(sites, xProj, columns.from, columns.to, [dtProj.node])
    ? { from: columns.from }
    : null;
}

function smoothLowRankDt(sites: Sites, edit: GraphEdit, options: SmoothQuantOptions, _context: PassContext): number {
  const { graph } = sites;
  let changed = 0;
  for (const block of sites.blocks) {
    const columns = options.roles.has("dt_proj") ? lowRankColumns(sites, block) : null;
    const { dtProj, xProj } = block;
    const weight = xProj === null ? undefined : graph.initializers.get(xProj.weight);
    if (columns === null || dtProj === null || xProj === null || weight === undefined) continue;
    const scale = smoothingVector(options.channelAbsMax(dtProj.input), largestByRow(graph, [dtProj]), options.alpha);
    scaleRows(edit, graph, [dtProj], scale);
    const factors = new Float64Array(xProj.outFeatures).fill(1);
    scale.forEach((value, channel) => {
      factors[columns.from + channel] = 1 / value;
    });
    reweight(edit, xProj, "dt", scaledWeight(weight, null, factors));
    changed += 1;
  }
  return changed;
}
