/** GraphProto, NodeProto, FunctionProto and their parts to the IR. */

import type { Attribute, AttributeKind, FunctionDef, Graph, Node, ValueInfo } from "../ir/graph.js";
import type { Tensor } from "../ir/tensor.js";
import { topologicalOrder } from "../ir/topological-order.js";
import { EXIT, MambacError } from "../support/errors.js";
import { decodeEntries, decodeSparse, decodeTensor, type ReadContext } from "./decode-tensor.js";
import { decodeType } from "./decode-type.js";
import { encode } from "./proto.js";
import { ATTRIBUTE_TYPE, type Message, type MessageInit, type MessageName } from "./schema.js";

/** 'ai.onnx' is another name of the main domain ''. */
export function decodeDomain(domain: string | undefined): string {
  return domain === undefined || domain === "ai.onnx" ? "" : domain;
}

/** Wire bytes of the fields the IR does not model, ready to spread into an IR object; nothing when there are none. */
export function extrasOf<M extends MessageName>(
  message: M,
  value: Message<M>,
  unmodelled: MessageInit<M>,
  context: ReadContext,
): { readonly extras?: Uint8Array } {
  context.log.unknown(message, value, "kept unread");
  for (const [field, content] of Object.entries(unmodelled)) {
    if (content !== undefined && !(Array.isArray(content) && content.length === 0)) {
      context.log.note(`${message}.${field} is not interpreted; kept as it is`);
    }
  }
  const { pieces, byteLength } = encode(message, { ...unmodelled, ...(value.unknown && { unknown: value.unknown }) });
  if (byteLength === 0) return {};
  const extras = new Uint8Array(byteLength);
  let at = 0;
  for (const piece of pieces) {
    extras.set(piece, at);
    at += piece.byteLength;
  }
  return { extras };
}

/** Opset imports by domain. Throws when a domain is imported in two versions. */
export function decodeOpsets(
  imports: readonly Message<"OperatorSetIdProto">[],
  where: string,
  context: ReadContext,
): Map<string, number> {
  const out = new Map<string, number>();
  for (const entry of imports) {
    context.log.unknown("OperatorSetIdProto", entry, "dropped");
    const domain = decodeDomain(entry.domain);
    const version = Number(entry.version ?? 0n);
    const before = out.get(domain);
    if (before !== undefined && before !== version) {
      throw new MambacError(
        "onnx/opset",
        `${where} imports the domain "${domain}" in the versions ${before} and ${version}`,
      );
    }
    out.set(domain, version);
  }
  return out;
}

/** Reads a graph; `where` names it in messages. */
export function decodeGraph(proto: Message<"GraphProto">, where: string, context: ReadContext): Graph {
  const initializers = new Map<string, Tensor>();
  const add = (name: string, tensor: Tensor): void => {
    if (name === "") throw new MambacError("onnx/initializer", `${where} has an initialiser without a name`);
    if (initializers.has(name)) {
      throw new MambacError("onnx/duplicate-name", `${where} has two initialisers called "${name}"`);
    }
    initializers.set(name, tensor);
  };
  for (const tensor of proto.initializer) {
    const name = tensor.name ?? "";
    add(name, decodeTensor(tensor, `initialiser "${name}" of ${where}`, context));
  }
  for (const sparse of proto.sparse_initializer) {
    const name = sparse.values?.name ?? "";
    context.log.note(`GraphProto.sparse_initializer: "${name}" is stored densely`);
    add(name, decodeSparse(sparse, `sparse initialiser "${name}" of ${where}`, context));
  }
  return {
    name: proto.name ?? "",
    doc: proto.doc_string ?? "",
    inputs: proto.input.map((value) => decodeValue(value, where, context)),
    outputs: proto.output.map((value) => decodeValue(value, where, context)),
    nodes: decodeNodes(proto.node, where, context),
    initializers,
    valueInfo: decodeValues(proto.value_info, where, context),
    metadata: decodeEntries(proto.metadata_props, `the metadata of ${where}`, context.log),
    ...extrasOf("GraphProto", proto, { quantization_annotation: proto.quantization_annotation }, context),
  };
}

function decodeValue(proto: Message<"ValueInfoProto">, where: string, context: ReadContext): ValueInfo {
  const name = proto.name ?? "";
  if (name === "") throw new MambacError("onnx/value", `${where} declares a value without a name`);
  const label = `value "${name}" of ${where}`;
  return {
    name,
    type: proto.type === undefined ? null : decodeType(proto.type, label, context.log),
    doc: proto.doc_string ?? "",
    metadata: decodeEntries(proto.metadata_props, `the metadata of ${label}`, context.log),
    ...extrasOf("ValueInfoProto", proto, {}, context),
  };
}

function decodeValues(
  protos: readonly Message<"ValueInfoProto">[],
  where: string,
  context: ReadContext,
): Map<string, ValueInfo> {
  const out = new Map<string, ValueInfo>();
  for (const proto of protos) {
    const value = decodeValue(proto, where, context);
    if (out.has(value.name))
      context.log.note(`${where} describes the value "${value.name}" twice; the last one counts`);
    out.set(value.name, value);
  }
  return out;
}

/** Nodes in topological order; a file in another order is sorted, a circle is left for the verifier to name. */
function decodeNodes(protos: readonly Message<"NodeProto">[], where: string, context: ReadContext): readonly Node[] {
  const nodes = protos.map((node, at) => decodeNode(node, at, where, context));
  const sorted = topologicalOrder(nodes) ?? nodes;
  if (sorted !== nodes) context.log.note(`the nodes of ${where} are not in topological order; sorted`);
  return sorted;
}

function decodeNode(proto: Message<"NodeProto">, at: number, where: string, context: ReadContext): Node {
  const op = proto.op_type ?? "";
  const label = `node ${at} (${op}${proto.name === undefined || proto.name === "" ? "" : ` "${proto.name}"`}) of ${where}`;
  if (op === "") throw new MambacError("onnx/node", `${label} has no op_type`);
  const domain = decodeDomain(proto.domain);
  const attributes = new Map<string, Attribute>();
  const unheld: Message<"AttributeProto">[] = [];
  for (const attribute of proto.attribute) {
    const name = attribute.name ?? "";
    if (name === "") throw new MambacError("onnx/attribute", `${label} has an attribute without a name`);
    if (attributes.has(name)) throw new MambacError("onnx/attribute", `${label} has two attributes called "${name}"`);
    if (op === "Constant" && domain === "" && name === "sparse_value" && attribute.sparse_tensor !== undefined) {
      context.log.note("the sparse_value of a Constant is stored densely");
      attributes.set("value", { kind: "tensor", value: decodeSparse(attribute.sparse_tensor, label, context) });
      continue;
    }
    const decoded = decodeAttribute(attribute, `attribute "${name}" of ${label}`, context);
    if (decoded === null) unheld.push(attribute);
    else attributes.set(name, decoded);
  }
  return {
    name: proto.name ?? "",
    domain,
    op,
    overload: proto.overload ?? "",
    inputs: proto.input,
    outputs: proto.output,
    attributes,
    doc: proto.doc_string ?? "",
    metadata: decodeEntries(proto.metadata_props, `the metadata of ${label}`, context.log),
    ...extrasOf("NodeProto", proto, { attribute: unheld, device_configurations: proto.device_configurations }, context),
  };
}

const KINDS: ReadonlyMap<number, AttributeKind | "sparseTensor" | "sparseTensors"> = new Map(
  Object.entries(ATTRIBUTE_TYPE).map(([kind, number]) => [number, kind as keyof typeof ATTRIBUTE_TYPE]),
);

const VALUE_FIELDS = {
  float: "f",
  int: "i",
  string: "s",
  tensor: "t",
  graph: "g",
  floats: "floats",
  ints: "ints",
  strings: "strings",
  tensors: "tensors",
  graphs: "graphs",
  sparseTensor: "sparse_tensor",
  sparseTensors: "sparse_tensors",
  type: "tp",
  types: "type_protos",
} as const;

type AnyKind = keyof typeof VALUE_FIELDS;

/** Kinds whose field carries a value other than the default that proto3 writers leave out or write at will. */
function filledKinds(proto: Message<"AttributeProto">): AnyKind[] {
  return (Object.keys(VALUE_FIELDS) as AnyKind[]).filter((kind) => {
    const value = proto[VALUE_FIELDS[kind]];
    if (value === undefined || value === 0 || value === 0n) return false;
    return !((Array.isArray(value) || value instanceof Uint8Array) && value.length === 0);
  });
}

/** Reads an attribute; null when the IR has no such kind (sparse tensors). */
function decodeAttribute(proto: Message<"AttributeProto">, label: string, context: ReadContext): Attribute | null {
  const kind = attributeKind(proto, label);
  if (kind === "sparseTensor" || kind === "sparseTensors") return null;
  const extras = extrasOf("AttributeProto", proto, { doc_string: proto.doc_string || undefined }, context);
  const reference = proto.ref_attr_name ?? "";
  for (const other of filledKinds(proto)) {
    if (other !== kind || reference !== "") {
      context.log.note(`${label} has a value in AttributeProto.${VALUE_FIELDS[other]} beside its type; dropped`);
    }
  }
  if (reference !== "") return { kind: "ref", name: reference, type: kind, ...extras };
  return { ...decodeAttributeValue(proto, kind, label, context), ...extras };
}

function attributeKind(proto: Message<"AttributeProto">, label: string): AnyKind {
  if (proto.type !== undefined && proto.type !== 0) {
    const kind = KINDS.get(proto.type);
    if (kind === undefined) {
      throw new MambacError("onnx/attribute", `${label} has the unknown type number ${proto.type}`, EXIT.unsupported);
    }
    return kind;
  }
  // Files from before IR version 2 have no type: the one filled field tells.
  const [kind, second] = filledKinds(proto);
  if (kind === undefined || second !== undefined) {
    throw new MambacError("onnx/attribute", `${label} has no type and its fields do not tell it`);
  }
  return kind;
}

function decodeAttributeValue(
  proto: Message<"AttributeProto">,
  kind: AttributeKind,
  label: string,
  context: ReadContext,
): Attribute {
  switch (kind) {
    case "float":
      return { kind, value: proto.f ?? 0 };
    case "int":
      return { kind, value: proto.i ?? 0n };
    case "string":
      return { kind, value: proto.s ?? new Uint8Array(0) };
    case "floats":
      return { kind, value: proto.floats };
    case "ints":
      return { kind, value: proto.ints };
    case "strings":
      return { kind, value: proto.strings };
    case "tensor": {
      if (proto.t === undefined) throw new MambacError("onnx/attribute", `${label} has no tensor`);
      const value = decodeTensor(proto.t, `the tensor in ${label}`, context);
      return proto.t.name === undefined || proto.t.name === "" ? { kind, value } : { kind, value, name: proto.t.name };
    }
    case "tensors":
      return {
        kind,
        value: proto.tensors.map((tensor) => {
          if ((tensor.name ?? "") !== "") context.log.note("a tensor in an attribute's list has a name; dropped");
          return decodeTensor(tensor, `a tensor in ${label}`, context);
        }),
      };
    case "graph":
      if (proto.g === undefined) throw new MambacError("onnx/attribute", `${label} has no graph`);
      return { kind, value: decodeGraph(proto.g, `the graph in ${label}`, context) };
    case "graphs":
      return { kind, value: proto.graphs.map((graph) => decodeGraph(graph, `a graph in ${label}`, context)) };
    case "type":
      return { kind, value: proto.tp === undefined ? null : decodeType(proto.tp, label, context.log) };
    case "types":
      return { kind, value: proto.type_protos.map((type) => decodeType(type, label, context.log)) };
  }
}

/** Reads a model-local function. */
export function decodeFunction(proto: Message<"FunctionProto">, context: ReadContext): FunctionDef {
  const domain = decodeDomain(proto.domain);
  const name = proto.name ?? "";
  const where = `function ${domain}.${name}`;
  if (name === "") throw new MambacError("onnx/function", "the model has a function without a name");
  const attributeDefaults = new Map<string, Attribute>();
  for (const attribute of proto.attribute_proto) {
    const key = attribute.name ?? "";
    const label = `attribute "${key}" of ${where}`;
    const decoded = decodeAttribute(attribute, label, context);
    if (decoded === null) throw new MambacError("onnx/attribute", `${label} is a sparse tensor`, EXIT.unsupported);
    if (key === "" || attributeDefaults.has(key)) {
      throw new MambacError("onnx/attribute", `${where} has an attribute without a name of its own`);
    }
    attributeDefaults.set(key, decoded);
  }
  return {
    domain,
    name,
    overload: proto.overload ?? "",
    inputs: proto.input,
    outputs: proto.output,
    attributes: proto.attribute,
    attributeDefaults,
    nodes: decodeNodes(proto.node, where, context),
    opsets: decodeOpsets(proto.opset_import, where, context),
    valueInfo: decodeValues(proto.value_info, where, context),
    doc: proto.doc_string ?? "",
    metadata: decodeEntries(proto.metadata_props, `the metadata of ${where}`, context.log),
    ...extrasOf("FunctionProto", proto, {}, context),
  };
}
