/**
 * Where a factor of an activation's channels can be folded in: x / s where x is made, diag(s) W where it is read.
 *
 * | input of | takes 1/s | id |
 * |---|---|---|
 * | in_proj, attention and MLP projections, head | the gain of the norm before them (a new gain where it was absorbed) | F1 |
 * | out_proj, Mamba-2 | the gain of the gated norm | F10 |
 * | out_proj, Mamba-1 | the gate columns of in_proj, with SiLU(z) = s v sigmoid(s v), v = z / s | F9 |
 * | dt_proj | the dt columns of x_proj | F7 |
 *
 * Not foldable: inputs that something else reads too (x of Mamba-1 feeds x_proj and the scan); F9 on Mamba-2, where the
 * gate feeds a norm.
 */

import { type Model, makeNode } from "../ir/graph.js";
import { f32Tensor, toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import type { Weight } from "../quant/ranges.js";
import { viewGraph } from "./axes.js";
import { onlyReaders } from "./column-uses.js";
import { GraphEdit } from "./edit.js";
import { layoutOf } from "./layout.js";
import type { PassContext, PassResult } from "./pass.js";
import { reweight } from "./reweight.js";
import { type LinearRole, type LinearSite, type MambaBlock, Sites, sitesOf } from "./sites.js";
import { mainOpset } from "./trials.js";
import { scaledWeight, weightValues } from "./weights.js";

/** One activation that can take factors. */
export interface SmoothingSite {
  /** The activation, as calibration names it. */
  readonly input: string;
  /** The projections that read it. */
  readonly readers: readonly LinearSite[];
  /** Their weights [K, N_i], in the same order. */
  readonly weights: readonly Weight[];
}

export interface Smoothing {
  /** Name of the pass, in front of remark codes. */
  readonly pass: string;
  /** Projections whose inputs may take factors. */
  readonly roles: ReadonlySet<LinearRole>;
  /** s, one positive factor a channel; null leaves the site alone. */
  readonly scalesFor: (site: SmoothingSite) => Promise<Float64Array | null>;
}

interface Foldable {
  readonly input: string;
  readonly readers: readonly LinearSite[];
  readonly fold: (edit: GraphEdit, scale: Float64Array) => void;
}

type Report = PassContext["report"];
type Finder = (sites: Sites, smoothing: Smoothing, report: Report) => Foldable[];

/** Folds factors in wherever they can go; one after the other, because F1 and F9 both change in_proj. */
export async function smoothModel(model: Model, smoothing: Smoothing, report: Report): Promise<PassResult> {
  let { graph } = model;
  let changed = 0;
  for (const find of [normInputs, gatedInputs, lowRankInputs] satisfies Finder[]) {
    const sites = new Sites(viewGraph(graph, mainOpset(model)));
    const edit = new GraphEdit(graph);
    let count = 0;
    for (const { input, readers, fold } of find(sites, smoothing, report)) {
      const weights = readers.flatMap(({ weight }) => {
        const tensor = sites.graph.initializers.get(weight);
        return tensor === undefined ? [] : [{ label: weight, shape: tensor.shape, data: weightValues(tensor) }];
      });
      // A weight that was rounded already takes no factor.
      if (weights.length !== readers.length) continue;
      const scale = await smoothing.scalesFor({ input, readers, weights });
      if (scale === null) continue;
      fold(edit, scale);
      count += 1;
    }
    if (count > 0) graph = edit.commit();
    changed += count;
  }
  return { model: { ...model, graph }, changed };
}

/** The activations that may take factors, and whose channels must be calibrated for it. */
export function smoothableInputs(model: Model, roles: ReadonlySet<LinearRole>): string[] {
  const sites = sitesOf(model);
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

/** Multiplies the rows of the readers' weights, and lets them read `input` if there is one. */
function scaleRows(
  edit: GraphEdit,
  sites: Sites,
  readers: readonly LinearSite[],
  scale: Float64Array,
  input: string | null = null,
): void {
  for (const reader of readers) {
    const tensor = sites.graph.initializers.get(reader.weight);
    if (tensor === undefined) continue;
    reweight(edit, reader, "smooth", scaledWeight(tensor, scale, null), input ?? reader.input);
  }
}

function normInputs(sites: Sites, { pass, roles }: Smoothing, report: Report): Foldable[] {
  const { graph } = sites;
  const handled = new Set<string>();
  return sites.linears.flatMap((site): Foldable[] => {
    const norm = roles.has(site.role) ? sites.normOf(site.input) : null;
    if (norm === null || handled.has(norm.output)) return [];
    handled.add(norm.output);
    const missed = (code: string, message: string): Foldable[] => {
      report({ kind: "missed", code: `${pass}/${code}`, where: norm.output, message });
      return [];
    };
    const readers = sites.readersOf(norm.output);
    if (readers === null)
      return missed("shared", "something other than a projection reads the norm, so its outliers stay");
    const tensor = norm.gain === null ? undefined : graph.initializers.get(norm.gain.gain);
    const old = tensor === undefined ? Float64Array.of(1) : toNumbers(tensor);
    const channels = site.inFeatures;
    if ((old.length !== 1 && old.length !== channels) || (tensor?.shape.length ?? 0) > 1)
      return missed("gain", "the gain of the norm is not one factor a channel, so its outliers stay");
    const fold = (edit: GraphEdit, scale: Float64Array): void => {
      const name = edit.unused(`${norm.output}.smooth_gain`);
      // A gain of one number becomes one for each channel.
      const gains = scale.map((value, channel) => (old[old.length === 1 ? 0 : channel] ?? 1) / value);
      edit.addInitializers(new Map([[name, f32Tensor([channels], gains)]]));
      if (norm.gain === null) {
        const output = edit.unused(`${norm.output}.smooth`);
        edit.addNodes([makeNode("Mul", [norm.output, name], [output])]);
        scaleRows(edit, sites, readers, scale, output);
      } else {
        const { node, gainInput } = norm.gain;
        edit.swapNode(node, { ...node, inputs: node.inputs.map((input, at) => (at === gainInput ? name : input)) });
        scaleRows(edit, sites, readers, scale);
      }
    };
    return [{ input: site.input, readers, fold }];
  });
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
    onlyReaders(sites, gateColumns.linear, gateColumns.from, gateColumns.to, [
      gate.silu,
      gate.restored?.node ?? gate.sigmoid,
    ])
  );
}

function gatedInputs(sites: Sites, { pass, roles }: Smoothing, report: Report): Foldable[] {
  return sites.blocks.flatMap((block): Foldable[] => {
    const { gate, outProj, gateColumns } = block;
    if (!roles.has("out_proj") || block.scan.family !== "mamba1") return [];
    const z = gate === null ? null : layoutOf(sites.view, gate.z);
    const weight = sites.graph.initializers.get(gateColumns?.linear.weight ?? "");
    const factor = sites.graph.initializers.get(gate?.restored?.factor ?? "");
    const known = factor === undefined ? 1 : elementCount(factor.shape);
    const straight = isGatedWithoutNorm(sites, block) && z?.fixed.length === 1 && (known === 1 || known === z.fixed[0]);
    if (!straight || gate === null || outProj === null || gateColumns === null || weight === undefined || z === null) {
      report({
        kind: "missed",
        code: `${pass}/gate`,
        where: block.layer,
        message: "the gate does not come straight from in_proj, or has another reader, so out_proj keeps its outliers",
      });
      return [];
    }
    const fold = (edit: GraphEdit, scale: Float64Array): void => {
      scaleRows(edit, sites, [outProj], scale);
      const { linear, from } = gateColumns;
      reweight(edit, linear, "gate", scaledWeight(weight, null, dividedColumns(linear, from, scale)));
      const after = z.axes.length - 1 - z.axes.indexOf("fixed");
      const factor = edit.unused(`${gate.z}.smooth_scale`);
      const shape = [scale.length, ...new Array<number>(after).fill(1)];
      const known = sites.graph.initializers.get(gate.restored?.factor ?? "");
      const before = known === undefined ? Float64Array.of(1) : toNumbers(known);
      const factors = scale.map((value, channel) => value * (before[before.length === 1 ? 0 : channel] ?? 1));
      edit.addInitializers(new Map([[factor, f32Tensor(shape, factors)]]));
      if (gate.restored !== null) {
        const { node, factor: old } = gate.restored;
        edit.swapNode(node, { ...node, inputs: node.inputs.map((input) => (input === old ? factor : input)) });
        return;
      }
      const restored = edit.unused(`${gate.z}.restored`);
      edit.addNodes([makeNode("Mul", [gate.z, factor], [restored])]);
      edit.swapNode(gate.sigmoid, { ...gate.sigmoid, inputs: [restored] });
    };
    return [{ input: outProj.input, readers: [outProj], fold }];
  });
}

/** Factors of a projection's columns: 1/s from column `from` on, 1 elsewhere. */
function dividedColumns(linear: LinearSite, from: number, scale: Float64Array): Float64Array {
  const columns = new Float64Array(linear.outFeatures).fill(1);
  scale.forEach((value, channel) => {
    columns[from + channel] = 1 / value;
  });
  return columns;
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

function lowRankInputs(sites: Sites, { roles }: Smoothing, _report: Report): Foldable[] {
  return sites.blocks.flatMap((block): Foldable[] => {
    const columns = roles.has("dt_proj") ? lowRankColumns(sites, block) : null;
    const { dtProj, xProj } = block;
    const weight = xProj === null ? undefined : sites.graph.initializers.get(xProj.weight);
    if (columns === null || dtProj === null || xProj === null || weight === undefined) return [];
    const fold = (edit: GraphEdit, scale: Float64Array): void => {
      scaleRows(edit, sites, [dtProj], scale);
      reweight(edit, xProj, "dt", scaledWeight(weight, null, dividedColumns(xProj, columns.from, scale)));
    };
    return [{ input: dtProj.input, readers: [dtProj], fold }];
  });
}
