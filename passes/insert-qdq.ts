/**
 * insert-qdq: quantizes the activations that rounded projections read, so that a runtime multiplies integers.
 *
 * Placement: a QuantizeLinear / DequantizeLinear pair on the input of every chosen projection, one scale a tensor; one pair
 * serves all readers of a value. Residual, norms, gates, dt, A, D and everything the scan touches stay float. What else gets a
 * pair, and on which grid, depends on the profile (`qdq-profile.ts`): for ONNX Runtime's CPU provider and TensorRT int8
 * symmetric with zero point 0 (uint8 around 128 where several projections of ONNX Runtime's read one value); for QNN asymmetric, with pairs on results, their biases and what moves them to the next
 * projection. `dynamic` measures the scale in every call instead (uint8, as DynamicQuantizeLinear defines it) and multiplies
 * with MatMulInteger.
 * Inputs that a pass before has quantized keep that pair.
 * Refuses: projections whose weight no pass has rounded (they would run in float anyway), with a remark; `dynamic`, and any
 * profile but ONNX Runtime's, for block-wise weights, which have no integer product.
 *
 *     before   u -> MatMul(DequantizeLinear(codes))
 *     after    u -> QuantizeLinear -> DequantizeLinear -> MatMul(DequantizeLinear(codes))
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { attrInt, type Model, makeNode, type Node } from "../src/ir/graph.js";
import { toNumbers } from "../src/ir/tensor.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import {
  type ActivationType,
  addConstant,
  addGrid,
  addPairOn,
  type PairGrid,
  type ValueRange,
} from "../src/rewrite/qdq-pair.js";
import { qdqPlan } from "../src/rewrite/qdq-plan.js";
import { profileRules, type QdqProfile } from "../src/rewrite/qdq-profile.js";
import { SEMANTIC_DOMAIN } from "../src/rewrite/semantic.js";
import { type LinearRole, type LinearSite, type Sites, sitesOf } from "../src/rewrite/sites.js";
import { invariant } from "../src/support/errors.js";

export interface InsertQdqOptions {
  readonly roles: ReadonlySet<LinearRole>;
  /** Which of the projections of these roles; all unless given. */
  readonly includes?: (site: LinearSite) => boolean;
  readonly timing: "static" | "dynamic";
  /**
   * What must be representable of an activation, from calibration, a number standing for both signs; not asked when dynamic.
   */
  readonly range: (value: string) => number | ValueRange;
  /** `ort-cpu` unless given. */
  readonly profile?: QdqProfile;
}

export const insertQdq: Pass<InsertQdqOptions> = definePass({
  name: "insert-qdq",
  summary: "quantize the activations that rounded projections read",
  exactness: "lossy",
  requires: ["linears-aligned", "weights-rounded"],
  establishes: ["qdq-inserted"],
  invalidates: [],
  run(model, options, context) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    const builder = new GraphBuilder("mambac.qdq.");
    const projections = chosen(sites, options, context);
    let changed = projections.length;
    if (options.timing === "dynamic") {
      changed = projections.filter((site) => dynamic(builder, edit, sites, site, context)).length;
    } else placePairs(builder, edit, sites, projections, options);
    edit.addNodes(builder.nodes);
    edit.addInitializers(builder.initializers);
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

/**
 * Pairs as the profile has them, on grids from calibration. ONNX Runtime 1.30 makes integer products of int8 codes on x64 only
 * where it can turn them into uint8 itself, which it does for a pair with one reader: codes that several projections read
 * are written as uint8 around 128, the same values. So are all codes of a graph with a fixed batch: where shapes are known, it
 * moves pairs past reshapes of its own, and what it turned into uint8 then still says int8, which it refuses. Where a scan or convolution reads what a pair made, a sum of one
 * summand stands between: ONNX Runtime 1.30 moves pairs into the functions of these operators, past what reshapes there,
 * and dies where an If reads that.
 */
function placePairs(
  builder: GraphBuilder,
  edit: GraphEdit,
  sites: Sites,
  projections: readonly LinearSite[],
  { profile = "ort-cpu", range }: InsertQdqOptions,
): void {
  const { activations, results } = profileRules(profile);
  const plan = qdqPlan(sites, projections, results);
  const readers = new Map<string, number>();
  for (const { input } of projections) readers.set(input, (readers.get(input) ?? 0) + 1);
  const sized = sites.view.frozenBatch !== null;
  const typeOf = (value: string): ActivationType =>
    activations === "i8" && profile === "ort-cpu" && (sized || (readers.get(value) ?? 0) > 1)
      ? "u8-symmetric"
      : activations;
  const gridOf = (value: string): PairGrid => addGrid(builder, value, range(value), typeOf(value), "insert-qdq");
  const changed = new Map<Node, Node>();
  const change = (node: Node, how: (now: Node) => Partial<Node>): void => {
    const now = changed.get(node) ?? node;
    changed.set(node, { ...now, ...how(now) });
  };
  const inputs = new Map(plan.inputs.map((value) => [value, addPairOn(builder, value, gridOf(value))]));
  for (const site of projections) {
    const input = inputs.get(site.input);
    if (input !== undefined) change(site.node, () => ({ inputs: [input, site.weight] }));
  }
  for (const { node, bias } of plan.biases) {
    const tensor = sites.graph.initializers.get(bias);
    invariant(tensor !== undefined, `the bias ${bias} is no weight`);
    const quantized = addConstant(builder, bias, toNumbers(tensor), tensor.shape, activations);
    change(node, (now) => ({ inputs: now.inputs.map((input) => (input === bias ? quantized : input)) }));
  }
  const grids = new Map(plan.results.map((value) => [value, gridOf(value)]));
  for (const value of [...plan.results, ...plan.moved.keys()]) {
    const grid = grids.get(plan.moved.get(value) ?? value);
    const producer = sites.index.producer.get(value);
    invariant(grid !== undefined && producer !== undefined, `${value} has no grid`);
    let rounded = value;
    if (sites.index.outputs.has(value)) {
      // The name of an output stays with what comes out.
      const raw = edit.unused(`${value}_float`);
      change(producer, (now) => ({ outputs: now.outputs.map((output) => (output === value ? raw : output)) }));
      addPairOn(builder, raw, grid, value);
    } else {
      rounded = addPairOn(builder, value, grid);
      edit.replaceValue(value, rounded);
    }
    const functions = (sites.index.users.get(value) ?? []).filter(({ domain }) => domain === SEMANTIC_DOMAIN);
    if (functions.length === 0) continue;
    const fenced = builder.op("Sum", [rounded]);
    for (const node of functions) {
      change(node, (now) => ({ inputs: now.inputs.map((input) => (input === value ? fenced : input)) }));
    }
  }
  for (const [node, to] of changed) edit.swapNode(node, to);
}

/** Activations whose range must be calibrated, each with the projection that asks for it first. */
export function quantizedValues(
  model: Model,
  includes: (site: LinearSite) => boolean,
  profile: QdqProfile = "ort-cpu",
): { readonly value: string; readonly site: LinearSite }[] {
  const sites = sitesOf(model);
  const candidates = sites.linears.filter(includes);
  const found = new Map<string, LinearSite>();
  const note = (value: string, site: LinearSite): void => {
    if (!found.has(value)) found.set(value, site);
  };
  for (const site of candidates) note(site.input, site);
  if (profileRules(profile).results) {
    const { biases } = qdqPlan(sites, candidates, true);
    for (const site of candidates) {
      note(site.output, site);
      for (const { node, output } of biases) if (node.inputs.includes(site.output)) note(output, site);
    }
  }
  return [...found].map(([value, site]) => ({ value, site }));
}

function chosen(sites: Sites, options: InsertQdqOptions, context: PassContext): LinearSite[] {
  return sites.linears.filter((site) => {
    if (!options.roles.has(site.role) || site.weightSide !== "right") return false;
    if (options.includes?.(site) === false) return false;
    // Another pass has quantized this input: both its readers must see the same saturated values.
    if (options.timing === "static" && isQuantized(sites, site.input)) return false;
    const weight = sites.index.producer.get(site.weight);
    const missed = (code: string, message: string): boolean => {
      context.report({ kind: "missed", code: `insert-qdq/${code}`, where: site.node.name || site.output, message });
      return false;
    };
    if (weight?.op !== "DequantizeLinear") {
      return missed("float-weight", "its weight is float, so its input stays float too");
    }
    const blocks = attrInt(weight, "block_size", 0) !== 0;
    if (blocks && (options.profile ?? "ort-cpu") !== "ort-cpu") {
      return missed("blocks", "a block-wise weight has no integer product, so its input stays float");
    }
    return true;
  });
}

function isQuantized(sites: Sites, value: string): boolean {
  const node = sites.index.producer.get(value);
  return node?.op === "DequantizeLinear" && sites.index.producer.get(node.inputs[0] ?? "")?.op === "QuantizeLinear";
}

/** DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul, which ONNX Runtime fuses into one kernel. */
function dynamic(
  builder: GraphBuilder,
  edit: GraphEdit,
  sites: Sites,
  site: LinearSite,
  context: PassContext,
): boolean {
  const weight = sites.index.producer.get(site.weight);
  const [codes, weightScale, weightZero] = weight?.inputs ?? [];
  if (
    weight === undefined ||
    codes === undefined ||
    weightScale === undefined ||
    attrInt(weight, "block_size", 0) !== 0
  ) {
    context.report({
      kind: "missed",
      code: "insert-qdq/blocks",
      where: site.node.name || site.output,
      message: "a block-wise weight has no integer product, so its input stays float",
    });
    return false;
  }
  const [q = "", scale = "", zero = ""] = builder.ops("DynamicQuantizeLinear", [site.input], 3);
  const product = builder.op("MatMulInteger", [
    q,
    codes,
    zero,
    ...(weightZero === undefined || weightZero === "" ? [] : [weightZero]),
  ]);
  const scaled: Node = makeNode(
    "Mul",
    [builder.op("Cast", [product], { to: 1 }), builder.op("Mul", [scale, weightScale])],
    [site.output],
    new Map(),
    {
      name: site.node.name,
    },
  );
  edit.swapNode(site.node, scaled);
  return true;
}
