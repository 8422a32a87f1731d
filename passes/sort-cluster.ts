/**
 * sort-cluster: puts channels of like size next to each other, so that a few scales serve all of them.
 *
 * Paper: Quamba2, 4.1 (sort-and-cluster). Inside each head, channels go by ascending size; inside each SSD group, heads of
 * like profile form clusters; `src/quant/cluster.ts`.
 * Algebra (F14): the scan treats heads of a group alike and channels of a head alike, so any order of them is as good as
 * another when all that has heads or channels follows: columns z, x and dt of in_proj, rows of the convolution, A, D and
 * dt_bias, the gain of the norm, rows of out_proj. B and C stay. States given from outside must be in the new order too;
 * the zero state is.
 * Refuses: Mamba-1, where every channel is a head; norms over parts of the channels that cut through a group; anything
 * else that reads z, x, dt or what the scan gives; a gain that is no initialiser (each with a remark).
 *
 *     before   in_proj W; conv w; A, D, dt_bias; norm gamma; out_proj V
 *     after    W P; P w; A[h], D[h], dt_bias[h]; gamma P; P^T V       (P permutes channels, h heads)
 */

import type { Node } from "../src/ir/graph.js";
import type { Tensor } from "../src/ir/tensor.js";
import { elementCount } from "../src/ir/types.js";
import { clusterNumbers, type SortedChannels, sortAndCluster } from "../src/quant/cluster.js";
import type { Statistics } from "../src/quant/statistics.js";
import { viewGraph } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { type OrderedBlock, orderedBlock } from "../src/rewrite/head-order.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { reweight } from "../src/rewrite/reweight.js";
import { CLUSTERS_KEY, CONV_INPUT, SCAN_INPUT } from "../src/rewrite/semantic.js";
import { Sites } from "../src/rewrite/sites.js";
import { mainOpset } from "../src/rewrite/trials.js";
import { lazyWeight, weightValues } from "../src/rewrite/weights.js";

export interface SortClusterOptions {
  /** Size of each channel of a scan's x: mean magnitudes, from calibration. */
  readonly channelSizes: Statistics["channelMeanAbs"];
  /** Clusters of heads in a group, and of channels in a head; 4 each unless given. */
  readonly clusters?: { readonly heads: number; readonly channels: number };
}

export const sortCluster: Pass<SortClusterOptions> = definePass({
  name: "sort-cluster",
  summary: "put channels and heads of like size next to each other",
  exactness: "real-exact",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  run(model, { channelSizes, clusters }, context) {
    let { graph } = model;
    let changed = 0;
    const count = new Sites(viewGraph(graph, mainOpset(model))).blocks.length;
    for (let at = 0; at < count; at++) {
      const sites = new Sites(viewGraph(graph, mainOpset(model)));
      const block = sites.blocks[at];
      if (block === undefined) continue;
      const found = orderedBlock(sites, block);
      const trouble = typeof found === "string" ? found : unknownParameter(sites, found);
      if (trouble !== null || typeof found === "string") {
        context.report({
          kind: "missed",
          code: "sort-cluster/order",
          where: block.layer,
          message: `its channels keep their order: ${trouble}`,
        });
        continue;
      }
      const { groups, heads, headDim } = block.scan;
      const sorted = sortAndCluster(channelSizes(found.x), { groups, heads, channels: headDim }, clusters);
      const edit = new GraphEdit(graph);
      reorder(sites, edit, found, sorted);
      graph = edit.commit();
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph }, changed });
  },
});

/** The activations whose channel sizes decide. */
export function sortedInputs(sites: Sites): string[] {
  return sites.blocks.flatMap((block) => {
    const found = orderedBlock(sites, block);
    return typeof found === "string" ? [] : [found.x];
  });
}

/** Says which parameter that must follow is computed in the graph; null when none is. */
function unknownParameter({ graph }: Sites, { block, conv, gain, inProj, outProj }: OrderedBlock): string | null {
  const { A, D, dtBias } = SCAN_INPUT;
  const names = [
    ...[A, D, dtBias].map((input) => block.scan.node.inputs[input] ?? ""),
    ...[CONV_INPUT.weight, CONV_INPUT.bias].map((input) => conv.node.inputs[input] ?? ""),
    gain?.gain ?? "",
    inProj.weight,
    outProj.weight,
  ];
  const unknown = names.find((name) => name !== "" && !graph.initializers.has(name));
  return unknown === undefined ? null : `${unknown} is no initialiser`;
}

function reorder(sites: Sites, edit: GraphEdit, found: OrderedBlock, sorted: SortedChannels): void {
  const { block, inProj, outProj, conv, gain, columns } = found;
  const { heads, headDim } = block.scan;
  const inner = heads * headDim;
  const tensorOf = (name: string): Tensor | undefined => sites.graph.initializers.get(name);
  /** Puts the parameter with its rows in the new order in the place of an input. */
  const follow = (node: Node, inputs: readonly number[], order: Int32Array): Node => {
    const names = [...node.inputs];
    for (const input of inputs) {
      const tensor = tensorOf(names[input] ?? "");
      if (tensor === undefined || elementCount(tensor.shape) === 1) continue;
      const name = edit.unused(`${names[input]}.sorted`);
      edit.addInitializers(new Map([[name, withRows(tensor, order)]]));
      names[input] = name;
    }
    return { ...node, inputs: names };
  };
  const channels = sorted.channelOrder;
  const columnOrder = Int32Array.from({ length: inProj.outFeatures }, (_, column) => column);
  channels.forEach((old, place) => {
    columnOrder[columns.gate + place] = columns.gate + old;
    columnOrder[columns.x + place] = columns.x + old;
  });
  sorted.headOrder.forEach((old, place) => {
    columnOrder[columns.dt + place] = columns.dt + old;
  });
  const [before, after] = [tensorOf(inProj.weight), tensorOf(outProj.weight)];
  if (before !== undefined) reweight(edit, inProj, "sorted", withColumns(before, columnOrder));
  if (after !== undefined) reweight(edit, outProj, "sorted", withRows(after, channels));
  const convOrder = Int32Array.from({ length: conv.channels }, (_, at) => (at < inner ? (channels[at] ?? at) : at));
  edit.swapNode(conv.node, follow(conv.node, [CONV_INPUT.weight, CONV_INPUT.bias], convOrder));
  if (gain !== null) edit.swapNode(gain.node, follow(gain.node, [gain.gainInput], channels));
  const { A, D, dtBias } = SCAN_INPUT;
  // D has one number a head, or one a channel, and then the channels of a head move too.
  const skip = tensorOf(block.scan.node.inputs[D] ?? "")?.shape ?? [];
  const skipOrder = elementCount(skip) === inner ? channels : sorted.headOrder;
  const scan = follow(follow(block.scan.node, [A, dtBias], sorted.headOrder), [D], skipOrder);
  const metadata = new Map([...scan.metadata, [CLUSTERS_KEY, JSON.stringify([...clusterNumbers(sorted)])]]);
  edit.swapNode(block.scan.node, { ...scan, metadata });
}

/** Rows (first axis) in the order given: row i is the old row order[i]. */
function withRows(tensor: Tensor, order: Int32Array): Tensor {
  return lazyWeight(tensor.shape, () => {
    const values = weightValues(tensor);
    const size = values.length / order.length;
    const out = new Float32Array(values.length);
    order.forEach((old, at) => out.set(values.subarray(old * size, (old + 1) * size), at * size));
    return out;
  });
}

/** Columns (last axis of a matrix) in the order given. */
function withColumns(tensor: Tensor, order: Int32Array): Tensor {
  return lazyWeight(tensor.shape, () => {
    const values = weightValues(tensor);
    const columns = order.length;
    const out = new Float32Array(values.length);
    for (let row = 0; row < values.length; row += columns) {
      for (let at = 0; at < columns; at++) out[row + at] = values[row + (order[at] ?? at)] ?? 0;
    }
    return out;
  });
}
