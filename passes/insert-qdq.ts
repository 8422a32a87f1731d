/**
 * insert-qdq: quantizes the activations that rounded projections read, so that a runtime multiplies integers.
 *
 * Placement (ONNX Runtime CPU): a QuantizeLinear / DequantizeLinear pair on the input of every chosen projection, one
 * scale a tensor, int8 symmetric with zero point 0; one pair serves all readers of a value. Residual, norms, gates, dt, A,
 * D and everything the scan touches stay float. `dynamic` measures the scale in every call instead (uint8, as
 * DynamicQuantizeLinear defines it) and multiplies with MatMulInteger.
 * Inputs that a pass before has quantized keep that pair.
 * Refuses: projections whose weight no pass has rounded (they would run in float anyway), with a remark; `dynamic` for
 * block-wise weights, which have no integer product.
 *
 *     before   u -> MatMul(DequantizeLinear(codes))
 *     after    u -> QuantizeLinear -> DequantizeLinear -> MatMul(DequantizeLinear(codes))
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { attrInt, type Model, makeNode, type Node } from "../src/ir/graph.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import { addPair } from "../src/rewrite/qdq-pair.js";
import type { Sites } from "../src/rewrite/sites.js";
import { type LinearRole, type LinearSite, sitesOf } from "../src/rewrite/sites.js";

export interface InsertQdqOptions {
  readonly roles: ReadonlySet<LinearRole>;
  /** Which of the projections of these roles; all unless given. */
  readonly includes?: (site: LinearSite) => boolean;
  readonly timing: "static" | "dynamic";
  /** Largest magnitude of an activation that must be representable, from calibration; not asked when dynamic. */
  readonly range: (value: string, role: LinearRole) => number;
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
    const pairs = new Map<string, string>();
    let changed = 0;
    for (const site of chosen(sites, options, context)) {
      if (options.timing === "dynamic") {
        if (!dynamic(builder, edit, sites, site, context)) continue;
      } else {
        const quantized =
          pairs.get(site.input) ?? addPair(builder, site.input, options.range(site.input, site.role), "insert-qdq");
        pairs.set(site.input, quantized);
        edit.swapNode(site.node, { ...site.node, inputs: [quantized, site.weight] });
      }
      changed += 1;
    }
    edit.addNodes(builder.nodes);
    edit.addInitializers(builder.initializers);
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

/** Activations whose range must be calibrated. */
export function quantizedInputs(model: Model, roles: ReadonlySet<LinearRole>): { value: string; role: LinearRole }[] {
  const sites = sitesOf(model);
  const seen = new Map<string, LinearRole>();
  for (const site of sites.linears) if (roles.has(site.role) && !seen.has(site.input)) seen.set(site.input, site.role);
  return [...seen].map(([value, role]) => ({ value, role }));
}

function chosen(sites: Sites, options: InsertQdqOptions, context: PassContext): LinearSite[] {
  return sites.linears.filter((site) => {
    if (!options.roles.has(site.role) || site.weightSide !== "right") return false;
    if (options.includes?.(site) === false) return false;
    // Another pass has quantized this input: both its readers must see the same saturated values.
    if (options.timing === "static" && isQuantized(sites, site.input)) return false;
    if (sites.index.producer.get(site.weight)?.op === "DequantizeLinear") return true;
    context.report({
      kind: "missed",
      code: "insert-qdq/float-weight",
      where: site.node.name || site.output,
      message: "its weight is float, so its input stays float too",
    });
    return false;
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
