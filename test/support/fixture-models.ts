/** Where the fixture models are, and a plain form of models for comparison. */

import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { Attribute, FunctionDef, Graph, Model, Node } from "../../src/ir/graph.js";
import type { Tensor } from "../../src/ir/tensor.js";

const ROOT: string = join(import.meta.dirname, "..", "fixtures");

/** Absolute path of a fixture, such as `hf/mamba2/prefill.onnx`. */
export function fixture(name: string): string {
  return join(ROOT, name);
}

/** Names of all fixture models, sorted. */
export const FIXTURE_MODELS: readonly string[] = readdirSync(ROOT, { recursive: true, encoding: "utf8" })
  .map((name) => name.replaceAll("\\", "/"))
  .filter((name) => name.endsWith(".onnx"))
  .sort();

/** The model as plain data, weights as hex, so that deep equality compares every field and every byte. */
export function plainModel(model: Model): unknown {
  return { ...model, graph: plainGraph(model.graph), functions: model.functions.map(plainFunction) };
}

function plainGraph(graph: Graph): unknown {
  const initializers = [...graph.initializers].map(([name, tensor]) => [name, plainTensor(tensor)]);
  return { ...graph, initializers, nodes: graph.nodes.map(plainNode) };
}

function plainFunction(fn: FunctionDef): unknown {
  const defaults = [...fn.attributeDefaults].map(([name, value]) => [name, plainAttribute(value)]);
  return { ...fn, nodes: fn.nodes.map(plainNode), attributeDefaults: defaults };
}

function plainNode(node: Node): unknown {
  return { ...node, attributes: [...node.attributes].map(([name, value]) => [name, plainAttribute(value)]) };
}

function plainAttribute(attribute: Attribute): unknown {
  switch (attribute.kind) {
    case "tensor":
      return { ...attribute, value: plainTensor(attribute.value) };
    case "tensors":
      return { ...attribute, value: attribute.value.map(plainTensor) };
    case "graph":
      return { ...attribute, value: plainGraph(attribute.value) };
    case "graphs":
      return { ...attribute, value: attribute.value.map(plainGraph) };
    default:
      return attribute;
  }
}

/** A tensor as plain data. */
function plainTensor(tensor: Tensor): unknown {
  const data = tensor.strings === null ? hex(tensor.bytes()) : tensor.strings.map(hex);
  return { dtype: tensor.dtype, shape: tensor.shape, data, doc: tensor.doc, metadata: tensor.metadata };
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}
