/**
 * fuse-gate: makes one operator of a block's gate and of the RMS norm beside it.
 *
 * Purpose: the gate, the norm and the reshapes around them are four or five short kernels a layer, each reading and writing all
 * channels; while decoding a small model that is a tenth of the time. No paper.
 * Algebra: none; the operator's function is the same nodes again, so a runtime without the operator library runs those.
 * Runs after everything that folds numbers into gates and gains, and only where operators of mambac are wanted.
 * Refuses: gates whose channels are not the last axis, gates with a constant in front of their sigmoid that is not one factor a channel
 * (smoothing leaves one behind where no norm is), norms that are not x / sqrt(mean(x^2) + epsilon). A gate without a norm it understands is fused alone. Other readers of
 * what is fused keep what they read.
 *
 *     before   z * Sigmoid(z) -> Mul(Reshape(y)) -> Div(Sqrt(ReduceMean(Pow 2) + eps)) -> Mul(weight)
 *     after    com.mambac.GatedRMSNorm(y, z, weight) {channels, group_size, norm_before_gate, epsilon}
 *     (without a norm: com.mambac.SiluGate(y, z) {channels}; smoothed, z * Sigmoid(Mul(z, s)): com.mambac.SlopedSiluGate(y, z, s))
 */

import type { Graph, Model, Node } from "../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../src/ir/tensor.js";
import { opFunction } from "../src/ops/functions.js";
import { OP_DOMAIN, OP_VERSION } from "../src/ops/names.js";
import { type GateNorm, gateNode } from "../src/ops/nodes.js";
import { axisRoles, concrete } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { dividedNorm } from "../src/rewrite/rms-norm.js";
import { type MambaBlock, type Sites, sitesOf } from "../src/rewrite/sites.js";

export const fuseGate: Pass<Record<string, never>> = definePass({
  name: "fuse-gate",
  summary: "make one operator of a gate and the norm beside it",
  exactness: "real-exact",
  requires: ["scan-raised"],
  establishes: [],
  invalidates: [],
  run(model) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    const used = new Set<string>();
    let changed = 0;
    for (const block of sites.blocks) {
      const found = fusedGate(sites, block);
      if (found === null) continue;
      const { y, z, channels, norm, slope, last } = found;
      const inputs = [y, z];
      if (norm !== null) inputs.push(weightOf(model, edit, block.layer, channels, norm));
      if (slope !== null) inputs.push(slopeOf(model, edit, block.layer, channels, slope));
      const params = { channels, norm, sloped: slope !== null };
      const gate = gateNode(params, inputs, last.outputs[0] ?? "", `${block.layer}.gate`);
      edit.swapNode(last, gate);
      used.add(gate.op);
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : withFunctions(model, edit.commit(), used), changed });
  },
});

interface Norm extends GateNorm {
  /** Initialisers [channels] or [groupSize] whose product is the weight. */
  readonly gains: readonly string[];
}

interface FusedGate {
  readonly y: string;
  readonly z: string;
  readonly channels: number;
  readonly norm: Norm | null;
  /** An initialiser inside the sigmoid: one factor, or one a channel. */
  readonly slope: string | null;
  /** The node whose output the operator makes. */
  readonly last: Node;
}

function fusedGate(sites: Sites, { gate, gateColumns }: MambaBlock): FusedGate | null {
  if (gate === null || gateColumns === null) return null;
  const { node, silu, sigmoid, z } = gate;
  const [product = "", sigma = ""] = [silu.outputs[0], sigmoid.outputs[0]];
  const isSilu = silu.inputs.includes(sigma) && silu.inputs.includes(z);
  const y = node.inputs.find((input) => input !== product);
  const channels = gateColumns.to - gateColumns.from;
  if (!isSilu || y === undefined || !node.inputs.includes(product)) return null;
  if (!isFloatRows(sites, z, channels) || !sameShape(sites, y, z)) return null;
  const alone = { y: unshaped(sites, y), z, channels, norm: null, slope: null, last: node };
  if (gate.restored !== null) {
    const { factor } = gate.restored;
    return isSlope(sites, factor, channels) ? { ...alone, slope: factor } : null;
  }
  const after = normAfter(sites, node.outputs[0] ?? "", z, channels);
  if (after !== null) return { ...alone, norm: after.norm, last: after.last };
  const before = normBefore(sites, y, z, channels);
  if (before !== null) return { ...alone, y: unshaped(sites, before.x), norm: before.norm };
  return alone;
}

/** Float32, with this many channels on its last axis, whatever the length. */
function isFloatRows(sites: Sites, name: string, channels: number): boolean {
  const value = concrete(sites.view, name);
  const last = axisRoles(sites.view, name)?.at(-1);
  return value?.dtype === "f32" && value.shape?.at(-1) === channels && last === "fixed";
}

function sameShape(sites: Sites, a: string, b: string): boolean {
  const [left, right] = [concrete(sites.view, a)?.shape, concrete(sites.view, b)?.shape];
  return left != null && right != null && left.join() === right.join();
}

/** The value behind reshapes, which leave the order of elements as it is. */
function unshaped(sites: Sites, name: string): string {
  const node = sites.index.producer.get(name);
  return node?.op === "Reshape" && node.domain === "" ? unshaped(sites, node.inputs[0] ?? "") : name;
}

/** The norm of the gated value, of all its channels or of groups of them. */
function normAfter(sites: Sites, gated: string, z: string, channels: number): { norm: Norm; last: Node } | null {
  const readers = (name: string): readonly Node[] => sites.index.users.get(name) ?? [];
  const shaped = readers(gated).flatMap((user) => (user.op === "Reshape" && user.domain === "" ? user.outputs : []));
  for (const x of [gated, ...shaped]) {
    for (const node of readers(x)) {
      const found = normOf(sites, node, x, z, channels);
      if (found !== null) return { norm: { ...found.norm, beforeGate: false }, last: found.last };
    }
  }
  return null;
}

/** The norm that makes y, which the gate multiplies. */
function normBefore(sites: Sites, y: string, z: string, channels: number): { norm: Norm; x: string } | null {
  let at = y;
  for (let hops = 0; hops < 4; hops++) {
    const node = sites.index.producer.get(at);
    if (node === undefined) return null;
    const found = normOf(sites, node, null, z, channels);
    if (found !== null && found.last.outputs[0] === y) return { norm: { ...found.norm, beforeGate: true }, x: found.x };
    const gained = node.op === "Mul" && node.inputs.some((input) => sites.graph.initializers.has(input));
    if (node.domain !== "" || (node.op !== "Reshape" && !gained)) return null;
    at = node.inputs.find((input) => !sites.graph.initializers.has(input)) ?? "";
  }
  return null;
}

/** The norm that a division ends, with the gains behind it, up to a value shaped like z. */
function normOf(
  sites: Sites,
  node: Node,
  wanted: string | null,
  z: string,
  channels: number,
): { readonly x: string; readonly norm: Norm; readonly last: Node } | null {
  const divided = dividedNorm(sites, node);
  if (divided === null || (wanted !== null && divided.x !== wanted)) return null;
  const { x, epsilon } = divided;
  const groupSize = concrete(sites.view, x)?.shape?.at(-1) ?? 0;
  if (!isFloatRows(sites, x, groupSize) || groupSize === 0 || channels % groupSize !== 0) return null;
  const gains: string[] = [];
  let last = node;
  for (;;) {
    const [at = ""] = last.outputs;
    const [user, ...others] = sites.index.users.get(at) ?? [];
    if (user === undefined || others.length > 0 || user.domain !== "" || sites.index.outputs.has(at)) break;
    const width = concrete(sites.view, at)?.shape?.at(-1);
    const gain = user.op === "Mul" ? user.inputs.find((input) => isGain(sites, input, width)) : undefined;
    const reshaped = user.op === "Reshape" && !sameShape(sites, at, z) && sameShape(sites, user.outputs[0] ?? "", z);
    if (gain !== undefined) gains.push(gain);
    else if (!reshaped) break;
    last = user;
  }
  if (!sameShape(sites, last.outputs[0] ?? "", z)) return null;
  return { x, norm: { groupSize, beforeGate: false, epsilon, gains }, last };
}

function isGain(sites: Sites, name: string, width: number | undefined): boolean {
  const tensor = sites.graph.initializers.get(name);
  return tensor?.dtype === "f32" && tensor.shape.length === 1 && tensor.shape[0] === width;
}

/** One factor, or one for each channel along the last axis. */
function isSlope(sites: Sites, name: string, channels: number): boolean {
  const tensor = sites.graph.initializers.get(name);
  const size = tensor?.shape.reduce((product, axis) => product * axis, 1);
  return tensor?.dtype === "f32" && (size === 1 || (size === channels && tensor.shape.at(-1) === channels));
}

/** The slope as [channels]: itself where it has that shape. */
function slopeOf(model: Model, edit: GraphEdit, layer: string, channels: number, slope: string): string {
  const tensor = model.graph.initializers.get(slope);
  if (tensor === undefined || (tensor.shape.length === 1 && tensor.shape[0] === channels)) return slope;
  const values = toNumbers(tensor);
  const factors = Float32Array.from({ length: channels }, (_, i) => values[i % values.length] ?? 1);
  const name = edit.unused(`${layer}.gate_slope`);
  edit.addInitializers(new Map([[name, f32Tensor([channels], factors)]]));
  return name;
}

/** One factor a channel: the only gain as it is, or the product of several, each repeated for every group. */
function weightOf(model: Model, edit: GraphEdit, layer: string, channels: number, norm: Norm): string {
  const tensors = norm.gains.flatMap((name) => model.graph.initializers.get(name) ?? []);
  const [only = ""] = norm.gains;
  if (tensors.length === 1 && tensors[0]?.shape[0] === channels) return only;
  const weight = new Float32Array(channels).fill(1);
  for (const tensor of tensors) {
    const values = toNumbers(tensor);
    for (let i = 0; i < channels; i++) weight[i] = (weight[i] ?? 0) * (values[i % values.length] ?? 0);
  }
  const name = edit.unused(`${layer}.gate_weight`);
  edit.addInitializers(new Map([[name, f32Tensor([channels], weight)]]));
  return name;
}

function withFunctions(model: Model, graph: Graph, used: ReadonlySet<string>): Model {
  const known = new Set(model.functions.map(({ name }) => name));
  const fresh = [...used].filter((name) => !known.has(name)).sort();
  const functions = [...model.functions, ...fresh.map((name) => opFunction(name))];
  return { ...model, graph, functions, opsets: new Map([...model.opsets, [OP_DOMAIN, OP_VERSION]]) };
}
