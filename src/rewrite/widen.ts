/** A graph of half precision as the same graph in float32. */

import { type Attribute, type Graph, type Model, type Node, type ValueInfo } from "../ir/graph.js";
import { asBytes, type Tensor, tensorFromBytes, tensorFromSource, toNumbers } from "../ir/tensor.js";
import { type DType, dtypeNumber, type ValueType } from "../ir/types.js";

const HALVES: ReadonlySet<DType> = new Set<DType>(["f16", "bf16"]);
const HALF_NUMBERS: ReadonlySet<number> = new Set([...HALVES].map(dtypeNumber));
/** Attributes that hold a type: Cast.to, and dtype of operators that make tensors. */
const TYPE_ATTRIBUTES: ReadonlySet<string> = new Set(["to", "dtype"]);
/** Larger weights are converted whenever they are read. */
const EAGER_ELEMENTS = 4096;

/** The model with every f16 and bf16 tensor and type as f32, and how many of them there were; the same model when none. */
export function widened(model: Model): { readonly model: Model; readonly changed: number } {
  const widen = new Widening();
  const graph = widen.graph(model.graph);
  const functions = model.functions.map((def) => ({
    ...def,
    nodes: def.nodes.map((node) => widen.node(node)),
    valueInfo: new Map([...def.valueInfo].map(([name, info]) => [name, widen.value(info)])),
    attributeDefaults: new Map([...def.attributeDefaults].map(([name, value]) => [name, widen.attribute(name, value)])),
  }));
  return widen.changed === 0
    ? { model, changed: 0 }
    : { model: { ...model, graph, functions }, changed: widen.changed };
}

class Widening {
  changed = 0;

  graph(graph: Graph): Graph {
    return {
      ...graph,
      inputs: graph.inputs.map((info) => this.value(info)),
      outputs: graph.outputs.map((info) => this.value(info)),
      nodes: graph.nodes.map((node) => this.node(node)),
      initializers: new Map([...graph.initializers].map(([name, tensor]) => [name, this.#tensor(tensor)])),
      valueInfo: new Map([...graph.valueInfo].map(([name, info]) => [name, this.value(info)])),
    };
  }

  node(node: Node): Node {
    if (node.attributes.size === 0) return node;
    return {
      ...node,
      attributes: new Map([...node.attributes].map(([name, value]) => [name, this.attribute(name, value)])),
    };
  }

  value(info: ValueInfo): ValueInfo {
    return { ...info, type: this.#type(info.type) };
  }

  attribute(name: string, attribute: Attribute): Attribute {
    switch (attribute.kind) {
      case "int":
        if (!TYPE_ATTRIBUTES.has(name) || !HALF_NUMBERS.has(Number(attribute.value))) return attribute;
        this.changed += 1;
        return { ...attribute, value: BigInt(dtypeNumber("f32")) };
      case "tensor":
        return { ...attribute, value: this.#tensor(attribute.value) };
      case "tensors":
        return { ...attribute, value: attribute.value.map((tensor) => this.#tensor(tensor)) };
      case "graph":
        return { ...attribute, value: this.graph(attribute.value) };
      case "graphs":
        return { ...attribute, value: attribute.value.map((graph) => this.graph(graph)) };
      case "type":
        return { ...attribute, value: this.#type(attribute.value) };
      case "types":
        return { ...attribute, value: attribute.value.map((type) => this.#type(type)) };
      default:
        return attribute;
    }
  }

  #type(type: ValueType | null): ValueType | null {
    switch (type?.kind) {
      case "tensor":
      case "sparse":
        if (!HALVES.has(type.dtype)) return type;
        this.changed += 1;
        return { ...type, dtype: "f32" };
      case "sequence":
      case "optional":
        return { ...type, element: this.#type(type.element) };
      default:
        return type ?? null;
    }
  }

  #tensor(tensor: Tensor): Tensor {
    if (!HALVES.has(tensor.dtype)) return tensor;
    this.changed += 1;
    const { shape, doc, metadata } = tensor;
    if (tensor.byteLength <= 2 * EAGER_ELEMENTS)
      return tensorFromBytes("f32", shape, asBytes(Float32Array.from(toNumbers(tensor))), doc, metadata);
    const read = (offset: number, length: number): Uint8Array => {
      const [first, last] = [Math.floor(offset / 4), Math.ceil((offset + length) / 4)];
      const part = tensorFromBytes(tensor.dtype, [last - first], tensor.slice(2 * first, 2 * last));
      const floats = asBytes(Float32Array.from(toNumbers(part)));
      return floats.subarray(offset - 4 * first, offset - 4 * first + length);
    };
    return tensorFromSource("f32", shape, { read }, 0, "lazy", doc, metadata);
  }
}
