/**
 * rotate-residual: rotates the whole residual stream by one orthogonal matrix, offline.
 *
 * Papers: QuaRot, Quamba2 (Hadamard); MambaQuant R1 (KLT-enhanced: `K H`, K the eigenvectors of the activations'
 * covariance, which gives every channel the same variance).
 * Algebra (F2): RMSNorm without gain commutes with an orthogonal R, so embedding E -> E R, every projection reading the
 * stream W -> R^T W, every projection writing to it W -> W R, and the head W -> R^T W leave the logits as they were.
 * Refuses: streams that anything else reads or writes (a norm with gain, a concatenation, a router): the remark names the
 * first such node, and nothing is changed.
 *
 *     before   embedding E; in_proj W_in; out_proj W_out; head W
 *     after    E R; R^T W_in; W_out R; R^T W
 */

import type { Node } from "../src/ir/graph.js";
import { elementCount } from "../src/ir/types.js";
import { tokenInput, viewGraph } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { type Rotation, rotateReader, rotateWriter } from "../src/rewrite/rotation.js";
import { type LinearSite, Sites } from "../src/rewrite/sites.js";
import { mainOpset } from "../src/rewrite/trials.js";

export interface RotateResidualOptions {
  /** The rotation of a stream of `size` channels. */
  readonly rotationFor: (size: number) => Rotation;
}

export const rotateResidual: Pass<RotateResidualOptions> = definePass({
  name: "rotate-residual",
  summary: "rotate the residual stream by one orthogonal matrix folded into all weights",
  exactness: "real-exact",
  requires: ["linears-aligned", "norm-gain-absorbed"],
  establishes: [],
  invalidates: [],
  run(model, options, context) {
    const sites = new Sites(viewGraph(model.graph, mainOpset(model)));
    const stream = residualStream(sites);
    if ("reason" in stream) {
      context.report({ kind: "missed", code: "rotate-residual/stream", where: stream.where, message: stream.reason });
      return Promise.resolve({ model, changed: 0 });
    }
    const edit = new GraphEdit(model.graph);
    const rotation = options.rotationFor(stream.size);
    const replace = (
      node: Node,
      old: string,
      turn: (weight: NonNullable<ReturnType<typeof model.graph.initializers.get>>) => ReturnType<typeof rotateReader>,
    ): void => {
      const tensor = model.graph.initializers.get(old);
      if (tensor === undefined) return;
      const name = `${old}.rotated_residual${sites.index.position.get(node) ?? 0}`;
      edit.addInitializers(new Map([[name, turn(tensor)]]));
      edit.swapNode(node, { ...node, inputs: node.inputs.map((input) => (input === old ? name : input)) });
    };
    replace(stream.embedding, stream.table, (weight) => rotateWriter(weight, rotation));
    for (const reader of stream.readers)
      replace(reader.node, reader.weight, (weight) => rotateReader(weight, rotation));
    for (const writer of stream.writers)
      replace(writer.node, writer.weight, (weight) => rotateWriter(weight, rotation));
    for (const { node, bias } of stream.biases) replace(node, bias, (weight) => rotateWriter(weight, rotation));
    return Promise.resolve({
      model: { ...model, graph: edit.commit() },
      changed: stream.readers.length + stream.writers.length + 1,
    });
  },
});

interface Stream {
  readonly size: number;
  readonly embedding: Node;
  readonly table: string;
  readonly readers: readonly LinearSite[];
  readonly writers: readonly LinearSite[];
  readonly biases: readonly { readonly node: Node; readonly bias: string }[];
}

/** Everything that touches the residual stream, or what stands in the way. */
export function residualStream(sites: Sites): Stream | { readonly where: string; readonly reason: string } {
  const { graph, index } = sites;
  const token = tokenInput(graph)?.name;
  const embedding = graph.nodes.find(
    (node) => node.op === "Gather" && node.inputs[1] === token && graph.initializers.has(node.inputs[0] ?? ""),
  );
  const table = embedding?.inputs[0];
  const start = embedding?.outputs[0];
  if (embedding === undefined || table === undefined || start === undefined)
    return { where: "model", reason: "no embedding table was found" };
  const size = graph.initializers.get(table)?.shape[1] ?? 0;
  const stream = new Set<string>([start]);
  const readers = new Map<Node, LinearSite>();
  const writers = new Map<Node, LinearSite>();
  const biases: { node: Node; bias: string }[] = [];
  const queue = [start];
  const blocked = (node: Node, what: string): { where: string; reason: string } => ({
    where: node.name || (node.outputs[0] ?? ""),
    reason: `the residual stream cannot be rotated: ${what}`,
  });
  for (let value = queue.shift(); value !== undefined; value = queue.shift()) {
    for (const user of index.users.get(value) ?? []) {
      const output = user.outputs[0] ?? "";
      if (user.op === "Shape" || user.op === "Pow" || isSquare(user, value)) continue;
      if (sites.isNormalised(output)) {
        const found = sites.readersOf(output);
        if (found === null) return blocked(user, "a norm with a gain, or with a reader that is no projection");
        for (const site of found) readers.set(site.node, site);
        continue;
      }
      const other = user.inputs.find((input) => input !== value) ?? value;
      const isScalar = (name: string): boolean =>
        sites.free.has(name) && elementCount(graph.initializers.get(name)?.shape ?? [2]) === 1;
      if (user.op === "Add" && user.domain === "") {
        if (!stream.has(other)) {
          const writer = writerOf(sites, other, biases);
          if (writer === null) return blocked(user, "something that is no projection is added to it");
          writers.set(writer.node, writer);
        }
      } else if (
        !((user.op === "Mul" || user.op === "Div") && isScalar(other)) &&
        user.op !== "Cast" &&
        user.op !== "Identity"
      ) {
        return blocked(user, `${user.op} reads it`);
      }
      if (!stream.has(output)) {
        stream.add(output);
        queue.push(output);
      }
    }
    if (index.outputs.has(value)) return { where: value, reason: "the residual stream is an output of the graph" };
  }
  return { size, embedding, table, readers: [...readers.values()], writers: [...writers.values()], biases };
}

function isSquare(node: Node, value: string): boolean {
  return node.op === "Mul" && node.inputs.every((input) => input === value);
}

/** The projection behind an addend, over scalar factors and a bias. */
function writerOf(sites: Sites, name: string, biases: { node: Node; bias: string }[]): LinearSite | null {
  let at = name;
  for (let hops = 0; hops < 6; hops++) {
    const linear = sites.linears.find((site) => site.output === at);
    if (linear !== undefined) {
      const plain =
        linear.weightSide === "right" && !linear.transposed && (sites.index.users.get(at)?.length ?? 0) === 1;
      return plain ? linear : null;
    }
    const node = sites.index.producer.get(at);
    const constant = node?.inputs.find((input) => sites.free.has(input));
    const next = node?.inputs.find((input) => input !== constant);
    if (node === undefined || next === undefined || node.domain !== "") return null;
    if (constant === undefined) {
      if (node.op !== "Cast" && node.op !== "Identity") return null;
    } else if (node.op === "Add") {
      biases.push({ node, bias: constant });
    } else if (
      (node.op !== "Mul" && node.op !== "Div") ||
      elementCount(sites.graph.initializers.get(constant)?.shape ?? [2]) !== 1
    )
      return null;
    at = next;
  }
  return null;
}
