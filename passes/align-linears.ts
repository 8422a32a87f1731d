/**
 * align-linears: gives every projection the one form runtimes quantize: activations times a weight [K, N] of its own.
 *
 * - a weight on the left, W [N, K] times columns [K, L] (dt_proj of transformers exports), becomes a Transpose, a MatMul
 *   with W^T on the right and a Transpose back, which cancel against the layout changes around them;
 * - Gemm becomes MatMul and Add, with its transposition and factors folded into weight and bias;
 * - a projection of flattened activations [B*L, K] reads [B, L, K] again, where both Reshapes only flatten;
 * - a Transpose of a weight (a tied head) is folded into it;
 * - a weight that several nodes read (a tied head, merged equal tensors) is cloned for each.
 *
 * Refuses: weights on the left of activations that do not have three axes, a factor on a bias that is no weight (left as
 * they are, with a remark).
 *
 *     before   MatMul(W [1536, 48], delta [B, 48, L])
 *     after    Transpose -> MatMul([B, L, 48], W^T [48, 1536]) -> Transpose
 */

import { attr, attrFloat, attrInts, type Graph, makeNode, type Node } from "../src/ir/graph.js";
import type { Tensor } from "../src/ir/tensor.js";
import { concrete, viewGraph } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { type LinearSite, Sites } from "../src/rewrite/sites.js";
import { mainOpset } from "../src/rewrite/trials.js";
import { lazyWeight, transposedWeight, weightValues } from "../src/rewrite/weights.js";

export const alignLinears: Pass<Record<string, never>> = definePass({
  name: "align-linears",
  summary: "give every projection the form x [.., K] times W [K, N], with a weight of its own",
  exactness: "real-exact",
  requires: ["scan-raised", "conv-raised"],
  establishes: ["linears-aligned"],
  invalidates: [],
  run(model, _options, context) {
    const opset = mainOpset(model);
    const folded = foldTransposes(model.graph);
    const sites = new Sites(viewGraph(folded.graph, opset));
    const edit = new GraphEdit(folded.graph);
    const claimed = new Set<string>();
    let changed = 0;
    for (const site of sites.linears) {
      const shared =
        claimed.has(site.weight) ||
        (sites.index.users.get(site.weight)?.length ?? 0) > 1 ||
        sites.index.outputs.has(site.weight);
      claimed.add(site.weight);
      const plain = site.node.op === "MatMul" && site.weightSide === "right";
      const tensor = folded.graph.initializers.get(site.weight);
      if ((plain && !shared) || tensor === undefined) continue;
      const trouble = rewrite(sites, edit, site, tensor);
      if (trouble === null) changed += 1;
      else {
        const where = site.node.name || site.output;
        context.report({ kind: "missed", code: "align-linears/form", where, message: trouble });
      }
    }
    const aligned = changed === 0 ? folded.graph : edit.commit();
    const { graph, changed: unflattened } = unflatten(new Sites(viewGraph(aligned, opset)));
    const total = folded.changed + changed + unflattened;
    return Promise.resolve({ model: total === 0 ? model : { ...model, graph }, changed: total });
  },
});

/** Weights behind a Transpose become weights of their own. */
function foldTransposes(graph: Graph): { graph: Graph; changed: number } {
  const edit = new GraphEdit(graph);
  const outputs = new Set(graph.outputs.map((output) => output.name));
  let changed = 0;
  for (const node of graph.nodes) {
    const tensor = graph.initializers.get(node.inputs[0] ?? "");
    const [output] = node.outputs;
    if (node.op !== "Transpose" || node.domain !== "" || tensor?.shape.length !== 2 || output === undefined) continue;
    if ((attrInts(node, "perm")?.[0] !== 1 && node.attributes.has("perm")) || outputs.has(output)) continue;
    const name = edit.unused(`${output}.folded`);
    edit.addInitializers(new Map([[name, transposedWeight(tensor)]]));
    edit.removeNode(node);
    edit.replaceValue(output, name);
    changed += 1;
  }
  return { graph: changed === 0 ? graph : edit.commit(), changed };
}

/** Rewrites one projection; gives what stands in the way, or null. */
function rewrite(sites: Sites, edit: GraphEdit, site: LinearSite, tensor: Tensor): string | null {
  const { node } = site;
  const weight = edit.unused(`${site.weight}.aligned`);
  if (site.weightSide === "left") {
    if (concrete(sites.view, site.input)?.shape?.length !== 3) return "a weight on the left of what is not [B, K, L]";
    edit.addInitializers(new Map([[weight, transposedWeight(tensor)]]));
    const [columns, product] = [edit.unused(`${site.output}.columns`), edit.unused(`${site.output}.product`)];
    const swap = new Map([["perm", attr.ints([0, 2, 1])]]);
    edit.addNodes([
      makeNode("Transpose", [site.input], [columns], swap),
      makeNode("MatMul", [columns, weight], [product], new Map(), { name: node.name }),
    ]);
    edit.swapNode(node, makeNode("Transpose", [product], [site.output], swap));
    return null;
  }
  const [alpha, beta] = node.op === "Gemm" ? [attrFloat(node, "alpha", 1), attrFloat(node, "beta", 1)] : [1, 1];
  const bias = node.op === "Gemm" ? (node.inputs[2] ?? "") : "";
  const offset = sites.graph.initializers.get(bias);
  if (bias !== "" && beta !== 1 && offset === undefined) return "a Gemm with a factor on a bias that is no weight";
  const upright = site.transposed ? transposedWeight(tensor) : tensor;
  edit.addInitializers(new Map([[weight, alpha === 1 ? upright : timesNumber(upright, alpha)]]));
  const matmul = (output: string): Node =>
    makeNode("MatMul", [site.input, weight], [output], new Map(), { name: node.name });
  if (bias === "") {
    edit.swapNode(node, matmul(site.output));
    return null;
  }
  let addend = bias;
  if (beta !== 1 && offset !== undefined) {
    addend = edit.unused(`${bias}.aligned`);
    edit.addInitializers(new Map([[addend, timesNumber(offset, beta)]]));
  }
  const product = edit.unused(`${site.output}.product`);
  edit.addNodes([matmul(product)]);
  edit.swapNode(node, makeNode("Add", [product, addend], [site.output]));
  return null;
}

function timesNumber(tensor: Tensor, factor: number): Tensor {
  return lazyWeight(tensor.shape, () => weightValues(tensor).map((value) => value * factor));
}

/** Reshape [B*L, K], MatMul, Add of a bias, Reshape [B, L, N] -> MatMul, Add. */
function unflatten(sites: Sites): { graph: Graph; changed: number } {
  const { view, graph, index } = sites;
  const edit = new GraphEdit(graph);
  let changed = 0;
  if (view.second === null) return { graph, changed };
  const views = [view.first.values, view.second.inference.values];
  const shapes = (name: string): (readonly number[] | null)[] => views.map((values) => values.get(name)?.shape ?? null);
  for (const site of sites.linears) {
    const before = index.producer.get(site.input);
    const source = before?.op === "Reshape" && before.domain === "" ? before.inputs[0] : undefined;
    if (source === undefined || site.node.op !== "MatMul" || site.weightSide !== "right") continue;
    let [after, ...others] = index.users.get(site.output) ?? [];
    const bias = after?.op === "Add" && after.domain === "" ? after : null;
    const offset = bias?.inputs.find((input) => input !== site.output);
    if (bias !== null) {
      if (graph.initializers.get(offset ?? "")?.shape.length !== 1) continue;
      [after, ...others] = [...(index.users.get(bias.outputs[0] ?? "") ?? []), ...others];
    }
    const [result] = after?.outputs ?? [];
    if (after?.op !== "Reshape" || after.domain !== "" || others.length > 0 || result === undefined) continue;
    if (index.outputs.has(site.output) || index.outputs.has(bias?.outputs[0] ?? "")) continue;
    const fits = shapes(source).every((from, at) => {
      const [flat, to] = [shapes(site.input)[at], shapes(result)[at]];
      return (
        from != null &&
        to != null &&
        flat?.length === 2 &&
        from.at(-1) === site.inFeatures &&
        flat[1] === site.inFeatures &&
        to.at(-1) === site.outFeatures &&
        from.length === to.length &&
        from.slice(0, -1).every((size, axis) => size === to[axis])
      );
    });
    if (!fits) continue;
    const name = { name: site.node.name };
    if (bias === null || offset === undefined) {
      edit.swapNode(after, makeNode("MatMul", [source, site.weight], [result], new Map(), name));
    } else {
      const product = edit.unused(`${result}.product`);
      edit.addNodes([makeNode("MatMul", [source, site.weight], [product], new Map(), name)]);
      edit.swapNode(after, makeNode("Add", [product, offset], [result]));
    }
    changed += 1;
  }
  return { graph: changed === 0 ? graph : edit.commit(), changed };
}
