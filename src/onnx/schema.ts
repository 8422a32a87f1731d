/**
 * Our description of ONNX messages, through IR version 13, as a table.
 *
 * A row is `field: [number, type]`. A type is a protobuf scalar, a message of this table, or either followed by `[]` when
 * repeated. `floats`, `doubles`, `int32s`, `int64s` and `uint64s` are the packed number columns of TensorProto; they
 * decode into typed arrays. Enums are plain `int32`. Field names are those of the ONNX specification.
 * Source: onnx.proto and onnx-ml.proto of the ONNX specification (field numbers are its public contract).
 */

export const SCHEMA = {
  ModelProto: {
    ir_version: [1, "int64"],
    producer_name: [2, "string"],
    producer_version: [3, "string"],
    domain: [4, "string"],
    model_version: [5, "int64"],
    doc_string: [6, "string"],
    graph: [7, "GraphProto"],
    opset_import: [8, "OperatorSetIdProto[]"],
    metadata_props: [14, "StringStringEntryProto[]"],
    training_info: [20, "TrainingInfoProto[]"],
    functions: [25, "FunctionProto[]"],
    configuration: [26, "DeviceConfigurationProto[]"],
  },
  GraphProto: {
    node: [1, "NodeProto[]"],
    name: [2, "string"],
    initializer: [5, "TensorProto[]"],
    doc_string: [10, "string"],
    input: [11, "ValueInfoProto[]"],
    output: [12, "ValueInfoProto[]"],
    value_info: [13, "ValueInfoProto[]"],
    quantization_annotation: [14, "TensorAnnotation[]"],
    sparse_initializer: [15, "SparseTensorProto[]"],
    metadata_props: [16, "StringStringEntryProto[]"],
  },
  NodeProto: {
    input: [1, "string[]"],
    output: [2, "string[]"],
    name: [3, "string"],
    op_type: [4, "string"],
    attribute: [5, "AttributeProto[]"],
    doc_string: [6, "string"],
    domain: [7, "string"],
    overload: [8, "string"],
    metadata_props: [9, "StringStringEntryProto[]"],
    device_configurations: [10, "NodeDeviceConfigurationProto[]"],
  },
  AttributeProto: {
    name: [1, "string"],
    f: [2, "float"],
    i: [3, "int64"],
    s: [4, "bytes"],
    t: [5, "TensorProto"],
    g: [6, "GraphProto"],
    floats: [7, "float[]"],
    ints: [8, "int64[]"],
    strings: [9, "bytes[]"],
    tensors: [10, "TensorProto[]"],
    graphs: [11, "GraphProto[]"],
    doc_string: [13, "string"],
    tp: [14, "TypeProto"],
    type_protos: [15, "TypeProto[]"],
    type: [20, "int32"],
    ref_attr_name: [21, "string"],
    sparse_tensor: [22, "SparseTensorProto"],
    sparse_tensors: [23, "SparseTensorProto[]"],
  },
  FunctionProto: {
    name: [1, "string"],
    input: [4, "string[]"],
    output: [5, "string[]"],
    attribute: [6, "string[]"],
    node: [7, "NodeProto[]"],
    doc_string: [8, "string"],
    opset_import: [9, "OperatorSetIdProto[]"],
    domain: [10, "string"],
    attribute_proto: [11, "AttributeProto[]"],
    value_info: [12, "ValueInfoProto[]"],
    overload: [13, "string"],
    metadata_props: [14, "StringStringEntryProto[]"],
  },
  ValueInfoProto: {
    name: [1, "string"],
    type: [2, "TypeProto"],
    doc_string: [3, "string"],
    metadata_props: [4, "StringStringEntryProto[]"],
  },
  TensorProto: {
    dims: [1, "int64[]"],
    data_type: [2, "int32"],
    segment: [3, "TensorProto.Segment"],
    float_data: [4, "floats"],
    int32_data: [5, "int32s"],
    string_data: [6, "bytes[]"],
    int64_data: [7, "int64s"],
    name: [8, "string"],
    raw_data: [9, "bytes"],
    double_data: [10, "doubles"],
    uint64_data: [11, "uint64s"],
    doc_string: [12, "string"],
    external_data: [13, "StringStringEntryProto[]"],
    data_location: [14, "int32"],
    metadata_props: [16, "StringStringEntryProto[]"],
  },
  "TensorProto.Segment": {
    begin: [1, "int64"],
    end: [2, "int64"],
  },
  SparseTensorProto: {
    values: [1, "TensorProto"],
    indices: [2, "TensorProto"],
    dims: [3, "int64[]"],
  },
  TypeProto: {
    tensor_type: [1, "TypeProto.Tensor"],
    sequence_type: [4, "TypeProto.Sequence"],
    map_type: [5, "TypeProto.Map"],
    denotation: [6, "string"],
    opaque_type: [7, "TypeProto.Opaque"],
    sparse_tensor_type: [8, "TypeProto.SparseTensor"],
    optional_type: [9, "TypeProto.Optional"],
  },
  "TypeProto.Tensor": {
    elem_type: [1, "int32"],
    shape: [2, "TensorShapeProto"],
  },
  "TypeProto.SparseTensor": {
    elem_type: [1, "int32"],
    shape: [2, "TensorShapeProto"],
  },
  "TypeProto.Sequence": {
    elem_type: [1, "TypeProto"],
  },
  "TypeProto.Optional": {
    elem_type: [1, "TypeProto"],
  },
  "TypeProto.Map": {
    key_type: [1, "int32"],
    value_type: [2, "TypeProto"],
  },
  "TypeProto.Opaque": {
    domain: [1, "string"],
    name: [2, "string"],
  },
  TensorShapeProto: {
    dim: [1, "TensorShapeProto.Dimension[]"],
  },
  "TensorShapeProto.Dimension": {
    dim_value: [1, "int64"],
    dim_param: [2, "string"],
    denotation: [3, "string"],
  },
  OperatorSetIdProto: {
    domain: [1, "string"],
    version: [2, "int64"],
  },
  StringStringEntryProto: {
    key: [1, "string"],
    value: [2, "string"],
  },
  TensorAnnotation: {
    tensor_name: [1, "string"],
    quant_parameter_tensor_names: [2, "StringStringEntryProto[]"],
  },
  TrainingInfoProto: {
    initialization: [1, "GraphProto"],
    algorithm: [2, "GraphProto"],
    initialization_binding: [3, "StringStringEntryProto[]"],
    update_binding: [4, "StringStringEntryProto[]"],
  },
  DeviceConfigurationProto: {
    name: [1, "string"],
    num_devices: [2, "int32"],
    device: [3, "string[]"],
  },
  NodeDeviceConfigurationProto: {
    configuration_id: [1, "string"],
    sharding_spec: [2, "ShardingSpecProto[]"],
    pipeline_stage: [3, "int32"],
  },
  ShardingSpecProto: {
    tensor_name: [1, "string"],
    device: [2, "int64[]"],
    index_to_device_group_map: [3, "IntIntListEntryProto[]"],
    sharded_dim: [4, "ShardedDimProto[]"],
  },
  IntIntListEntryProto: {
    key: [1, "int64"],
    value: [2, "int64[]"],
  },
  ShardedDimProto: {
    axis: [1, "int64"],
    simple_sharding: [2, "SimpleShardedDimProto[]"],
  },
  SimpleShardedDimProto: {
    dim_value: [1, "int64"],
    dim_param: [2, "string"],
    num_shards: [3, "int64"],
  },
} as const;

type Schema = typeof SCHEMA;

/** Name of a message of the table. */
export type MessageName = keyof Schema;

interface Scalars {
  readonly int32: number;
  readonly int64: bigint;
  readonly uint64: bigint;
  readonly float: number;
  readonly double: number;
  readonly string: string;
  readonly bytes: Uint8Array;
  readonly floats: Float32Array;
  readonly doubles: Float64Array;
  readonly int32s: Int32Array;
  readonly int64s: BigInt64Array;
  readonly uint64s: BigUint64Array;
}

/** Name of a scalar or packed column type. */
export type ScalarName = keyof Scalars;

/** A field of the wire that the table does not know, or knows with another wire type. `bytes` includes the tag. */
export interface UnknownField {
  readonly number: number;
  readonly wireType: number;
  readonly bytes: Uint8Array;
}

type TypeOf<M extends MessageName, F extends keyof Schema[M]> = Schema[M][F] extends readonly [number, infer T]
  ? T
  : never;

type Element<T> = T extends ScalarName ? Scalars[T] : T extends MessageName ? Message<T> : never;

/** A decoded message: repeated fields are always there, the others only when they were on the wire. */
export type Message<M extends MessageName> = {
  readonly [F in keyof Schema[M]]: TypeOf<M, F> extends `${infer E}[]`
    ? readonly Element<E>[]
    : Element<TypeOf<M, F>> | undefined;
} & { readonly unknown?: readonly UnknownField[] };

type InitElement<T> = T extends ScalarName ? Scalars[T] : T extends MessageName ? MessageInit<T> : never;

/** A message to encode: every field may be left out. `extras` are wire bytes written behind the known fields. */
export type MessageInit<M extends MessageName> = {
  readonly [F in keyof Schema[M]]?:
    | (TypeOf<M, F> extends `${infer E}[]` ? readonly InitElement<E>[] : InitElement<TypeOf<M, F>>)
    | undefined;
} & { readonly unknown?: readonly UnknownField[]; readonly extras?: Uint8Array | undefined };

/** ONNX `AttributeProto.AttributeType` numbers. */
export const ATTRIBUTE_TYPE = {
  float: 1,
  int: 2,
  string: 3,
  tensor: 4,
  graph: 5,
  floats: 6,
  ints: 7,
  strings: 8,
  tensors: 9,
  graphs: 10,
  sparseTensor: 11,
  sparseTensors: 12,
  type: 13,
  types: 14,
} as const;

/** ONNX `TensorProto.DataLocation.EXTERNAL`. */
export const EXTERNAL_LOCATION = 1;

/** Newest ONNX IR version the table describes. */
export const NEWEST_IR_VERSION = 13;
