/**
 * align-linears: gives every projection the one form runtimes quantize: activations times a weight [K, N] of its own.
 *
 * - a weight on the left, W [N, K] times columns [K, L] (dt_proj of transformers exports), becomes a Transpose, a MatMul
 *   with W^T on the right and a Transpose back, which cancel against the layout changes around them;
 * - Gemm becomes MatMul and Add, with its transposition folded into the weight;
 * - a Transpose of a weight (a tied head) is folded into it;
 * - a weight that several nodes read (a tied head, merged equal tensors) is cloned for each.
 *
 * Refuses: Gemm with alpha or beta other than 1 (left as it is, with a remark).
 *
 *     before   MatMul(W [1536, 48], delta [B, 48, L])
 *     after    Transpose -> MatMul([B, L, 48], W^T [48, 1536]) -> Transpose
 */

import { attr, attrFloat, attrInts, type Graph, makeNode, type Node } from "../src/ir/graph.js";
import type { Tensor } from "../src/ir/tensor.js";
import { viewGraph } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { type LinearSite, Sites } from "../src/rewrite/sites.js";
import { mainOpset } from "../src/rewrite/trials.js";
import { transposedWeight } from "../src/rewrite/weights.js";

export const alignLinears: Pass<Record<string, never>> = definePass({
  name: "align-linears",
  summary: "give every projection the form x [.., K] times W [K, N], with a weight of its own",
  exactness: "real-exact",
  requires: ["scan-raised", "conv-raised"],
  establishes: ["linears-aligned"],
  invalidates: [],
  run(model, _options, context) {
    const folded = foldTransposes(model.graph);
    const { graph } = folded;
    const sites = new Sites(viewGraph(graph, mainOpset(model)));
    const edit = new GraphEdit(graph);
    const claimed = new Set<string>();
    let changed = folded.changed;
    for (const [at, site] of sites.linears.entries()) {
      const shared =
        claimed.has(site.weight) ||
        (sites.index.users.get(site.weight)?.length ?? 0) > 1 ||
        sites.index.outputs.has(site.weight);
      claimed.add(site.weight);
      const plain = site.node.op === "MatMul" && site.weightSide === "right";
      if (plain && !shared) continue;
      if (
        site.node.op === "Gemm" &&
        (attrFloat(site.node, "alpha", 1) !== 1 || attrFloat(site.node, "beta", 1) !== 1)
      ) {
        context.report({
          kind: "missed",
          code: "align-linears/gemm",
          where: site.node.name || site.output,
          message: "a Gemm with alpha or beta other than 1 is left as it is",
        });
        continue;
      }
      const tensor = graph.initializers.get(site.weight);
      if (tensor === undefined) continue;
      rewrite(edit, site, tensor, at);
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

/** Weights behind a Transpose become weights of their own. */
function foldTransposes(graph: Graph): { graph: Graph; changed: number } {
  const edit = new GraphEdit(graph);
  let changed = 0;
  for (const node of graph.nodes) {
    const tensor = graph.initializers.get(node.inputs[0] ?? "");
    const [output] = node.outputs;
    if (node.op !== "Transpose" || node.domain !== "" || tensor?.shape.length !== 2 || output === undefined) continue;
    if (attrInts(node, "perm")?.[0] !== 1 && node.attributes.has("perm")) continue;
    const name = `${output}.folded`;
    edit.addInitializers(new Map([[name, transposedWeight(tensor)]]));
    edit.removeNode(node);
    edit.replaceValue(output, name);
    changed += 1;
  }
  return { graph: changed === 0 ? graph : edit.commit(), changed };
}

function rewrite(edit: GraphEdit, site: LinearSite, tensor: Tensor, at: number): void {
  const weight = `${site.weight}.${at}`;
  edit.addInitializers(new Map([[weight, site.transposed ? transposedWeight(tensor) : tensor]]));
  const { node } = site;
  if (site.weightSide === "left") {
    const [columns, product] = [`${site.output}.columns`, `${site.output}.product`];
    const swap = new Map([["perm", attr.ints([0, 2, 1])]]);
    edit.addNodes([
      makeNode("Transpose", [site.input], [columns], swap),
      makeNode("MatMul", [columns, weight], [product], new Map(), { name: node.name }),
    ]);
    edit.swapNode(node, makeNode("Transpose", [product], [site.output], swap));
    return;
  }
  const bias = node.op === "Gemm" ? node.inputs[2] : undefined;
  const matmul = (output: string): Node =>
    makeNode("MatMul", [site.input, weight], [output], new Map(), { name: node.name });
  if (bias === undefined || bias === "") {
    edit.swapNode(node, matmul(site.output));
    return;
  }
  const product = `${site.output}.product`;
  edit.addNodes([matmul(product)]);
  edit.swapNode(node, makeNode("Add", [product, bias], [site.output]));
}
