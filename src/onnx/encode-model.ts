/** The IR to ONNX messages. Every IR object maps to one message; nothing is reordered. */

import type { Attribute, FunctionDef, Graph, Model, Node, ValueInfo } from "../ir/graph.js";
import type { Tensor } from "../ir/tensor.js";
import { type Dim, dtypeNumber, type Shape, type ValueType } from "../ir/types.js";
import { assertNever } from "../support/errors.js";
import { ATTRIBUTE_TYPE, EXTERNAL_LOCATION, type MessageInit } from "./schema.js";

/** Where a tensor's bytes are in a side file. */
export interface ExternalPlace {
  readonly location: string;
  readonly offset: number;
}

/** Says which tensors live in a side file; the others are written inline. */
export type Placement = (tensor: Tensor) => ExternalPlace | undefined;

/** The model as a message. Inline tensors are read when this is called. */
export function modelMessage(model: Model, placement: Placement): MessageInit<"ModelProto"> {
  return {
    ir_version: BigInt(model.irVersion),
    producer_name: text(model.producerName),
    producer_version: text(model.producerVersion),
    domain: text(model.domain),
    model_version: model.modelVersion === 0n ? undefined : model.modelVersion,
    doc_string: text(model.doc),
    graph: graphMessage(model.graph, placement),
    opset_import: opsetMessages(model.opsets),
    metadata_props: entryMessages(model.metadata),
    functions: model.functions.map((fn) => functionMessage(fn, placement)),
    extras: model.extras,
  };
}

/** Optional texts are left out when empty; the IR does not tell the two apart. */
function text(value: string): string | undefined {
  return value === "" ? undefined : value;
}

function opsetMessages(opsets: ReadonlyMap<string, number>): MessageInit<"OperatorSetIdProto">[] {
  return [...opsets].map(([domain, version]) => ({ domain, version: BigInt(version) }));
}

function entryMessages(entries: ReadonlyMap<string, string>): MessageInit<"StringStringEntryProto">[] {
  return [...entries].map(([key, value]) => ({ key, value }));
}

function graphMessage(graph: Graph, placement: Placement): MessageInit<"GraphProto"> {
  return {
    node: graph.nodes.map((node) => nodeMessage(node, placement)),
    name: graph.name,
    initializer: [...graph.initializers].map(([name, tensor]) => tensorMessage(tensor, name, placement)),
    doc_string: text(graph.doc),
    input: graph.inputs.map(valueMessage),
    output: graph.outputs.map(valueMessage),
    value_info: [...graph.valueInfo.values()].map(valueMessage),
    metadata_props: entryMessages(graph.metadata),
    extras: graph.extras,
  };
}

function functionMessage(fn: FunctionDef, placement: Placement): MessageInit<"FunctionProto"> {
  return {
    name: fn.name,
    input: fn.inputs,
    output: fn.outputs,
    attribute: fn.attributes,
    node: fn.nodes.map((node) => nodeMessage(node, placement)),
    doc_string: text(fn.doc),
    opset_import: opsetMessages(fn.opsets),
    domain: fn.domain,
    attribute_proto: [...fn.attributeDefaults].map(([name, value]) => attributeMessage(name, value, placement)),
    value_info: [...fn.valueInfo.values()].map(valueMessage),
    overload: text(fn.overload),
    metadata_props: entryMessages(fn.metadata),
    extras: fn.extras,
  };
}

function nodeMessage(node: Node, placement: Placement): MessageInit<"NodeProto"> {
  return {
    input: node.inputs,
    output: node.outputs,
    name: text(node.name),
    op_type: node.op,
    attribute: [...node.attributes].map(([name, value]) => attributeMessage(name, value, placement)),
    doc_string: text(node.doc),
    domain: text(node.domain),
    overload: text(node.overload),
    metadata_props: entryMessages(node.metadata),
    extras: node.extras,
  };
}

function attributeMessage(name: string, attribute: Attribute, placement: Placement): MessageInit<"AttributeProto"> {
  const type = ATTRIBUTE_TYPE[attribute.kind === "ref" ? attribute.type : attribute.kind];
  return { name, type, ...attributeValue(attribute, placement), extras: attribute.extras };
}

function attributeValue(attribute: Attribute, placement: Placement): MessageInit<"AttributeProto"> {
  switch (attribute.kind) {
    case "float":
      return { f: attribute.value };
    case "int":
      return { i: attribute.value };
    case "string":
      return { s: attribute.value };
    case "tensor":
      return { t: tensorMessage(attribute.value, attribute.name ?? "", placement) };
    case "graph":
      return { g: graphMessage(attribute.value, placement) };
    case "type":
      return { tp: attribute.value === null ? {} : typeMessage(attribute.value) };
    case "floats":
      return { floats: attribute.value };
    case "ints":
      return { ints: attribute.value };
    case "strings":
      return { strings: attribute.value };
    case "tensors":
      return { tensors: attribute.value.map((tensor) => tensorMessage(tensor, "", placement)) };
    case "graphs":
      return { graphs: attribute.value.map((graph) => graphMessage(graph, placement)) };
    case "types":
      return { type_protos: attribute.value.map((type) => (type === null ? {} : typeMessage(type))) };
    case "ref":
      return { ref_attr_name: attribute.name };
    default:
      return assertNever(attribute);
  }
}

function tensorMessage(tensor: Tensor, name: string, placement: Placement): MessageInit<"TensorProto"> {
  const head: MessageInit<"TensorProto"> = {
    dims: tensor.shape.map((dim) => BigInt(dim)),
    data_type: dtypeNumber(tensor.dtype),
    name: text(name),
    doc_string: text(tensor.doc),
    metadata_props: entryMessages(tensor.metadata),
  };
  if (tensor.strings !== null) return { ...head, string_data: tensor.strings };
  const place = placement(tensor);
  if (place === undefined) return { ...head, raw_data: tensor.bytes() };
  return {
    ...head,
    external_data: [
      { key: "location", value: place.location },
      { key: "offset", value: String(place.offset) },
      { key: "length", value: String(tensor.byteLength) },
    ],
    data_location: EXTERNAL_LOCATION,
  };
}

function valueMessage(value: ValueInfo): MessageInit<"ValueInfoProto"> {
  return {
    name: value.name,
    type: value.type === null ? undefined : typeMessage(value.type),
    doc_string: text(value.doc),
    metadata_props: entryMessages(value.metadata),
    extras: value.extras,
  };
}

function typeMessage(type: ValueType): MessageInit<"TypeProto"> {
  return { ...typeVariant(type), denotation: text(type.denotation ?? "") };
}

function typeVariant(type: ValueType): MessageInit<"TypeProto"> {
  switch (type.kind) {
    case "tensor":
      return { tensor_type: { elem_type: dtypeNumber(type.dtype), shape: shapeMessage(type.shape, type.denotations) } };
    case "sparse":
      return { sparse_tensor_type: { elem_type: dtypeNumber(type.dtype), shape: shapeMessage(type.shape) } };
    case "sequence":
      return { sequence_type: { elem_type: elementMessage(type.element) } };
    case "optional":
      return { optional_type: { elem_type: elementMessage(type.element) } };
    case "map":
      return { map_type: { key_type: dtypeNumber(type.key), value_type: elementMessage(type.value) } };
    case "opaque":
      return { opaque_type: { domain: text(type.domain), name: text(type.name) } };
    default:
      return assertNever(type);
  }
}

function elementMessage(type: ValueType | null): MessageInit<"TypeProto"> | undefined {
  return type === null ? undefined : typeMessage(type);
}

function shapeMessage(
  shape: Shape | null,
  denotations?: readonly string[],
): MessageInit<"TensorShapeProto"> | undefined {
  if (shape === null) return undefined;
  return {
    dim: shape.map((dim, axis) => ({ ...dimValue(dim), denotation: text(denotations?.[axis] ?? "") })),
  };
}

function dimValue(dim: Dim): MessageInit<"TensorShapeProto.Dimension"> {
  if (dim === null) return {};
  return typeof dim === "number" ? { dim_value: BigInt(dim) } : { dim_param: dim };
}
