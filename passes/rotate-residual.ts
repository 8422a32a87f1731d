/**
 * rotate-residual: rotates the whole residual stream by one orthogonal matrix, offline.
 *
 * Papers: QuaRot, Quamba2 (Hadamard); MambaQuant R1 (KLT-enhanced: `K H`, K the eigenvectors of the activations'
 * covariance, which gives every channel the same variance).
 * Algebra (F2): RMSNorm without gain commutes with an orthogonal R, so embedding E -> E R, every projection reading the
 * stream W -> R^T W, every projection writing to it W -> W R, and the head W -> R^T W leave the logits as they were.
 * Refuses: streams that anything else reads or writes (a norm with gain, a concatenation, a router), and anything read
 * elsewhere before it is added: the remark names the first such node, and nothing is changed.
 *
 *     before   embedding E; in_proj W_in; out_proj W_out; head W
 *     after    E R; R^T W_in; W_out R; R^T W
 */

import { attrInt, type Node } from "../src/ir/graph.js";
import type { Tensor } from "../src/ir/tensor.js";
import { elementCount } from "../src/ir/types.js";
import { tokenInput } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { reweight } from "../src/rewrite/reweight.js";
import { isInvariant, normalisedValue } from "../src/rewrite/rms-norm.js";
import { type Rotation, rotateReader, rotateWriter } from "../src/rewrite/rotation.js";
import type { Sites } from "../src/rewrite/sites.js";
import { type LinearSite, sitesOf } from "../src/rewrite/sites.js";
import { invariant } from "../src/support/errors.js";

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
    const sites = sitesOf(model);
    const stream = residualStream(sites);
    if ("reason" in stream) {
      context.report({ kind: "missed", code: "rotate-residual/stream", where: stream.where, message: stream.reason });
      return Promise.resolve({ model, changed: 0 });
    }
    const edit = new GraphEdit(model.graph);
    const rotation = options.rotationFor(stream.size);
    const changed = new Map<LinearSite, (weight: Tensor) => Tensor>();
    for (const reader of stream.readers) changed.set(reader, (weight) => rotateReader(weight, rotation));
    for (const writer of stream.writers) {
      // A projection from the stream straight back into it turns on both sides.
      const inner = [...changed].find(([site]) => site.node === writer.node);
      if (inner !== undefined) changed.delete(inner[0]);
      changed.set(writer, (weight) => rotateWriter(inner === undefined ? weight : inner[1](weight), rotation));
    }
    const initializer = (name: string): Tensor => {
      const tensor = model.graph.initializers.get(name);
      invariant(tensor !== undefined, `rotate-residual: ${name} is no initialiser`);
      return tensor;
    };
    for (const [site, turn] of changed) reweight(edit, site, "rotated_residual", turn(initializer(site.weight)));
    const replace = (node: Node, old: string): void => {
      const name = edit.unused(`${old}.rotated_residual`);
      edit.addInitializers(new Map([[name, rotateWriter(initializer(old), rotation)]]));
      edit.swapNode(node, { ...node, inputs: node.inputs.map((input) => (input === old ? name : input)) });
    };
    replace(stream.embedding, stream.table);
    for (const { node, bias } of stream.biases) replace(node, bias);
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
  readonly biases: readonly BiasSite[];
}

interface BiasSite {
  readonly node: Node;
  /** Initialiser [size]. */
  readonly bias: string;
}

interface Obstacle {
  readonly where: string;
  readonly reason: string;
}

/** What is added to the stream: projections, and biases behind them. */
interface Addend {
  readonly writers: Map<Node, LinearSite>;
  readonly biases: Map<Node, string>;
}

/** Everything that touches the residual stream, or what stands in the way. */
export function residualStream(sites: Sites): Stream | Obstacle {
  const { graph, index } = sites;
  const token = tokenInput(graph)?.name;
  const embedding = graph.nodes.find(
    (node) =>
      node.op === "Gather" &&
      node.domain === "" &&
      node.inputs[1] === token &&
      graph.initializers.has(node.inputs[0] ?? "") &&
      attrInt(node, "axis", 0) === 0,
  );
  const table = embedding?.inputs[0];
  const start = embedding?.outputs[0];
  if (embedding === undefined || table === undefined || start === undefined)
    return { where: "model", reason: "no embedding table was found" };
  const size = graph.initializers.get(table)?.shape[1] ?? 0;
  const stream = new Set<string>([start]);
  const readers = new Map<Node, LinearSite>();
  const added: Addend = { writers: new Map(), biases: new Map() };
  const queue = [start];
  const blocked = (node: Node, what: string): Obstacle => ({
    where: node.name || (node.outputs[0] ?? ""),
    reason: `the residual stream cannot be rotated: ${what}`,
  });
  for (let value = queue.shift(); value !== undefined; value = queue.shift()) {
    if (index.outputs.has(value)) return { where: value, reason: "the residual stream is an output of the graph" };
    for (const user of index.users.get(value) ?? []) {
      const [output = ""] = user.outputs;
      if (user.op === "Shape" || isInvariant(sites, user)) continue;
      if (normalisedValue(sites, user) !== null) {
        const found = sites.readersOf(output);
        if (found === null) return blocked(user, "a norm with a gain, or with a reader that is no projection");
        for (const site of found) readers.set(site.node, site);
        continue;
      }
      if (user.op === "Add" && user.domain === "") {
        const other = user.inputs.find((input) => input !== value) ?? value;
        if (!stream.has(other) && !collect(sites, other, size, added))
          return blocked(user, "something that is no projection is added to it");
      } else if (!isScaling(sites, user, value)) return blocked(user, `${user.op} reads it`);
      if (!stream.has(output)) {
        stream.add(output);
        queue.push(output);
      }
    }
  }
  const biases = [...added.biases].map(([node, bias]) => ({ node, bias }));
  return { size, embedding, table, readers: [...readers.values()], writers: [...added.writers.values()], biases };
}

/** Does `node` only scale `value` by a constant number, or change its type? */
function isScaling(sites: Sites, node: Node, value: string): boolean {
  if (node.domain !== "") return false;
  if (node.op === "Cast" || node.op === "Identity") return true;
  const [first, second = ""] = node.inputs;
  if (node.op === "Div") return first === value && isNumber(sites, second);
  return node.op === "Mul" && node.inputs.some((input) => input !== value && isNumber(sites, input));
}

function isNumber(sites: Sites, name: string): boolean {
  return elementCount(sites.graph.initializers.get(name)?.shape ?? [2]) === 1;
}

/**
 * The projections behind an addend, over sums, constant factors and biases; false when anything else is behind it, or
 * when anything on the way has a second reader, who would see it rotated.
 */
function collect(sites: Sites, name: string, size: number, into: Addend): boolean {
  const { index } = sites;
  if ((index.users.get(name)?.length ?? 0) !== 1 || index.outputs.has(name)) return false;
  const linear = sites.linears.find((site) => site.output === name);
  if (linear !== undefined) {
    into.writers.set(linear.node, linear);
    return linear.weightSide === "right" && !linear.transposed && linear.node.op === "MatMul";
  }
  const node = index.producer.get(name);
  if (node === undefined || node.domain !== "") return false;
  const [a = "", b = ""] = node.inputs;
  if (node.op === "Add") {
    const constant = [a, b].find((input) => sites.free.has(input));
    if (constant === undefined) return a !== b && collect(sites, a, size, into) && collect(sites, b, size, into);
    const shape = sites.graph.initializers.get(constant)?.shape;
    if (shape?.length !== 1 || shape[0] !== size) return false;
    into.biases.set(node, constant);
    return collect(sites, constant === a ? b : a, size, into);
  }
  const [data] = node.inputs.filter((input) => !sites.free.has(input));
  return data !== undefined && isScaling(sites, node, data) && collect(sites, data, size, into);
}
