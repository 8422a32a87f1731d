/** TypeProto to ValueType. */

import type { Dim, Shape, TensorType, ValueType } from "../ir/types.js";
import { MambacError } from "../support/errors.js";
import { decodeDType } from "./decode-tensor.js";
import type { ReadLog } from "./read-log.js";
import type { Message } from "./schema.js";

/** Reads a type; null when the message names none. `label` names its owner in messages. */
export function decodeType(proto: Message<"TypeProto">, label: string, log: ReadLog): ValueType | null {
  log.unknown("TypeProto", proto, "dropped");
  const { tensor_type: tensor, sparse_tensor_type: sparse, sequence_type: sequence } = proto;
  const { optional_type: optional, map_type: map, opaque_type: opaque } = proto;
  const given = [tensor, sparse, sequence, optional, map, opaque].filter((variant) => variant !== undefined);
  if (given.length > 1) throw new MambacError("onnx/type", `${label} has ${given.length} types at once`);
  const type = ((): ValueType | null => {
    if (tensor !== undefined) {
      log.unknown("TypeProto.Tensor", tensor, "dropped");
      return decodeTensorType(tensor, label, log);
    }
    if (sparse !== undefined) {
      log.unknown("TypeProto.SparseTensor", sparse, "dropped");
      const dense = decodeTensorType(sparse, label, log);
      if (dense?.denotations !== undefined) log.note("a sparse type has dimension denotations; dropped");
      return dense === null ? null : { kind: "sparse", dtype: dense.dtype, shape: dense.shape };
    }
    if (sequence !== undefined) {
      log.unknown("TypeProto.Sequence", sequence, "dropped");
      return { kind: "sequence", element: element(sequence.elem_type, label, log) };
    }
    if (optional !== undefined) {
      log.unknown("TypeProto.Optional", optional, "dropped");
      return { kind: "optional", element: element(optional.elem_type, label, log) };
    }
    if (map !== undefined) {
      log.unknown("TypeProto.Map", map, "dropped");
      return { kind: "map", key: decodeDType(map.key_type, label), value: element(map.value_type, label, log) };
    }
    if (opaque !== undefined) {
      log.unknown("TypeProto.Opaque", opaque, "dropped");
      return { kind: "opaque", domain: opaque.domain ?? "", name: opaque.name ?? "" };
    }
    return null;
  })();
  const denotation = proto.denotation ?? "";
  if (denotation === "") return type;
  if (type === null) {
    log.note("a denotation without a type; dropped");
    return null;
  }
  return { ...type, denotation };
}

function element(proto: Message<"TypeProto"> | undefined, label: string, log: ReadLog): ValueType | null {
  return proto === undefined ? null : decodeType(proto, label, log);
}

function decodeTensorType(
  proto: Message<"TypeProto.Tensor"> | Message<"TypeProto.SparseTensor">,
  label: string,
  log: ReadLog,
): TensorType | null {
  if ((proto.elem_type ?? 0) === 0) {
    log.note("a value has a tensor type without an element type; read as untyped");
    return null;
  }
  const dtype = decodeDType(proto.elem_type, label);
  if (proto.shape === undefined) return { kind: "tensor", dtype, shape: null };
  log.unknown("TensorShapeProto", proto.shape, "dropped");
  const shape: Shape = proto.shape.dim.map((dim) => decodeDim(dim, label, log));
  const denotations = proto.shape.dim.map((dim) => dim.denotation ?? "");
  return denotations.some((text) => text !== "")
    ? { kind: "tensor", dtype, shape, denotations }
    : { kind: "tensor", dtype, shape };
}

function decodeDim(proto: Message<"TensorShapeProto.Dimension">, label: string, log: ReadLog): Dim {
  log.unknown("TensorShapeProto.Dimension", proto, "dropped");
  if (proto.dim_value !== undefined && proto.dim_param !== undefined) {
    throw new MambacError(
      "onnx/type",
      `${label} has a dimension that is both ${proto.dim_value} and "${proto.dim_param}"`,
    );
  }
  if (proto.dim_param !== undefined) return proto.dim_param === "" ? null : proto.dim_param;
  if (proto.dim_value === undefined) return null;
  const value = Number(proto.dim_value);
  if (value < 0) {
    log.note("a value has a negative dimension; read as unknown");
    return null;
  }
  if (!Number.isSafeInteger(value))
    throw new MambacError("onnx/type", `${label} has the impossible dimension ${value}`);
  return value;
}
