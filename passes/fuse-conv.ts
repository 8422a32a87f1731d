/**
 * fuse-conv: lets a block's convolution read and write tokens as rows, as the projections around it do.
 *
 * Purpose: convolutions are written for channels before tokens, so exporters turn the input around, and the result back, and
 * cut channels off on both sides: five passes over all channels, one of which is the convolution. No paper.
 * Algebra: none; the function of the operator that lowering makes of it is the same nodes again, so a runtime without the operator
 * library runs those. Runs just before lowering, after everything that looks at projections and gates, and only where operators of
 * mambac are wanted.
 * Refuses: convolutions whose input or result something reads that is no such transposition; of channels that are cut off
 * only a split along the last axis is read in place, and only one into three parts is written so. The rest of a split that is read
 * in place becomes slices.
 *
 *     before   Split(v) -> (z, u, dt); Transpose(u) -> CausalConv -> Transpose -> Split -> (x, B, C)
 *     after    CausalConv(v) {first, parts} -> (x, state, B, C); Slice(v) -> z, dt
 *     (lowered to com.mambac.CausalConvSiluSplit; in one part to com.mambac.CausalConvSiluRows)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { attrInt, attrInts, type Node, type UseIndex, useIndex } from "../src/ir/graph.js";
import type { ConvRows } from "../src/ops/nodes.js";
import { concrete, type View, viewGraph } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { type ConvOp, convNode, readSemantic } from "../src/rewrite/semantic.js";
import { mainOpset } from "../src/rewrite/trials.js";

export const fuseConv: Pass<Record<string, never>> = definePass({
  name: "fuse-conv",
  summary: "let convolutions read and write tokens as rows",
  exactness: "real-exact",
  requires: ["conv-raised"],
  establishes: [],
  invalidates: [],
  run(model) {
    const view = viewGraph(model.graph, mainOpset(model));
    const index = useIndex(model.graph);
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const node of model.graph.nodes) {
      const op = readSemantic(node);
      const found = op?.kind === "conv" ? rowsOf(view, index, op) : null;
      if (op?.kind !== "conv" || found === null) continue;
      const builder = new GraphBuilder(`mambac.rows${changed}.`);
      replace(view, index, edit, builder, op, found);
      edit.addNodes(builder.nodes);
      edit.addInitializers(builder.initializers);
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

/** What stands around a convolution. */
interface Surroundings {
  /** Tokens as rows, in front of the transposition. */
  readonly input: string;
  /** Where the input comes from when it is cut off a wider value and read nowhere else. */
  readonly cut: { readonly split: Node; readonly source: string; readonly first: number } | null;
  /** The transpositions behind. */
  readonly back: readonly Node[];
  /** A split of the result in three, the only reader of all of them. */
  readonly parted: { readonly split: Node; readonly sizes: readonly [number, number, number] } | null;
}

function rowsOf(view: View, index: UseIndex, op: ConvOp): Surroundings | null {
  const { node, channels } = op;
  const [x = "", , , past = ""] = node.inputs;
  const [y = ""] = node.outputs;
  const turned = index.producer.get(x);
  const back = index.users.get(y) ?? [];
  if (op.rows !== null || past === "" || turned === undefined || !isTurn(turned) || index.outputs.has(y)) return null;
  if (back.length === 0 || !back.every(isTurn)) return null;
  const [input = ""] = turned.inputs;
  const value = concrete(view, input);
  if (value?.dtype !== "f32" || value.shape?.length !== 3 || value.shape[2] !== channels) return null;
  return { input, cut: cutOf(view, index, input), back, parted: partedBy(view, index, back) };
}

function isTurn(node: Node): boolean {
  return node.op === "Transpose" && node.domain === "" && attrInts(node, "perm")?.join() === "0,2,1";
}

/** Sizes along the last axis that a split gives its outputs; null for other nodes and axes. */
function splitSizes(view: View, node: Node | undefined): readonly number[] | null {
  if (node?.op !== "Split" || node.domain !== "") return null;
  const rank = concrete(view, node.inputs[0] ?? "")?.shape?.length;
  if (rank !== 3 || (attrInt(node, "axis", 0) + rank) % rank !== rank - 1) return null;
  const sizes = node.outputs.map((output) => concrete(view, output)?.shape?.[rank - 1] ?? 0);
  return sizes.every((size) => size > 0) ? sizes : null;
}

function cutOf(view: View, index: UseIndex, input: string): Surroundings["cut"] {
  const split = index.producer.get(input);
  const sizes = splitSizes(view, split);
  if (split === undefined || sizes === null || index.outputs.has(input)) return null;
  if (index.users.get(input)?.length !== 1) return null;
  const first = sizes.slice(0, split.outputs.indexOf(input)).reduce((sum, size) => sum + size, 0);
  return { split, source: split.inputs[0] ?? "", first };
}

function partedBy(view: View, index: UseIndex, back: readonly Node[]): Surroundings["parted"] {
  // Values are turned forth and back before tidying; only what reads rows may be a split of channels.
  const queue = back.map(({ outputs: [value = ""] }) => ({ value, rows: true }));
  const readers: { readonly user: Node; readonly rows: boolean }[] = [];
  for (let at = queue.pop(); at !== undefined; at = queue.pop()) {
    const { value, rows } = at;
    if (index.outputs.has(value)) return null;
    for (const user of index.users.get(value) ?? []) {
      if (isTurn(user)) queue.push({ value: user.outputs[0] ?? "", rows: !rows });
      else readers.push({ user, rows });
    }
  }
  const [reader, ...others] = readers;
  if (reader?.rows !== true || others.length > 0) return null;
  const split = reader.user;
  const [one, two, three, ...rest] = splitSizes(view, split) ?? [];
  if (one === undefined || two === undefined || three === undefined || rest.length > 0) return null;
  return { split, sizes: [one, two, three] };
}

function replace(
  view: View,
  index: UseIndex,
  edit: GraphEdit,
  builder: GraphBuilder,
  op: ConvOp,
  { input, cut, back, parted }: Surroundings,
): void {
  const [, ...constants] = op.node.inputs;
  const [, present = ""] = op.node.outputs;
  const [turn] = back;
  const rows: ConvRows = { first: cut?.first ?? 0, parts: parted?.sizes ?? null };
  const [y = "", ...parts] = parted?.split.outputs ?? turn?.outputs ?? [];
  const inputs = [cut?.source ?? input, ...constants];
  const outputs = [y, present, ...(parted === null ? [] : parts)];
  builder.nodes.push(convNode({ ...op, rows }, inputs, outputs));
  edit.removeNode(op.node);
  for (const node of back) edit.removeNode(node);
  if (parted !== null) edit.removeNode(parted.split);
  for (const other of back.slice(1)) edit.replaceValue(other.outputs[0] ?? "", y);
  if (cut === null) return;
  edit.removeNode(cut.split);
  let from = 0;
  splitSizes(view, cut.split)?.forEach((size, at) => {
    const output = cut.split.outputs[at] ?? "";
    const read = (index.users.get(output)?.length ?? 0) > 0 || index.outputs.has(output);
    if (read && output !== input) {
      const bounds = [builder.ints([from]), builder.ints([from + size]), builder.ints([2])];
      builder.op("Slice", [cut.source, ...bounds], {}, output);
    }
    from += size;
  });
}
