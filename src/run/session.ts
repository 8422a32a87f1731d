/** The only importer of onnxruntime-node: plain sessions for proofs, calibration and evaluation. */

// biome-ignore assist/source/organizeImports: must run before ONNX Runtime is loaded.
import "./no-telemetry.js";
import * as ort from "onnxruntime-node";
import { asBytes, type Tensor, tensorFromBytes } from "../ir/tensor.js";
import { type DType, dtypeBits } from "../ir/types.js";
import { MambacError } from "../support/errors.js";

export interface SessionOptions {
  /** Graph optimisation level; proofs run the graph as written, so the default is 'disabled'. */
  readonly optimization?: "disabled" | "basic" | "extended" | "all";
  readonly threads?: number;
}

/** A loaded model. `run` takes and gives tensors by name; outputs default to all. Tensors given for outputs are written to. */
export interface Session {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  run(
    feeds: ReadonlyMap<string, Tensor>,
    outputs?: readonly string[] | ReadonlyMap<string, Tensor>,
  ): Promise<Map<string, Tensor>>;
  release(): Promise<void>;
}

/** Loads a model from a path, or from bytes (which must not refer to external files). */
export async function openSession(model: string | Uint8Array, options: SessionOptions = {}): Promise<Session> {
  const settings: ort.InferenceSession.SessionOptions = {
    graphOptimizationLevel: options.optimization ?? "disabled",
    intraOpNumThreads: options.threads ?? 1,
    interOpNumThreads: 1,
    executionMode: "sequential",
    logSeverityLevel: 4,
    extra: { session: { intra_op: { allow_spinning: (options.threads ?? 1) > 1 ? "1" : "0" } } },
  };
  let inner: ort.InferenceSession;
  try {
    inner =
      typeof model === "string"
        ? await ort.InferenceSession.create(model, settings)
        : await ort.InferenceSession.create(model, settings);
  } catch (cause) {
    throw new MambacError("session/load", `ONNX Runtime cannot load the model: ${messageOf(cause)}`, undefined, {
      cause,
    });
  }
  return {
    inputNames: inner.inputNames,
    outputNames: inner.outputNames,
    async run(feeds, outputs) {
      const inputs = allToOrt(feeds);
      let results: ort.InferenceSession.OnnxValueMapType;
      try {
        results =
          outputs === undefined
            ? await inner.run(inputs)
            : await inner.run(inputs, "get" in outputs ? allToOrt(outputs) : [...outputs]);
      } catch (cause) {
        throw new MambacError("session/run", `ONNX Runtime cannot run the model: ${messageOf(cause)}`, undefined, {
          cause,
        });
      }
      const out = new Map<string, Tensor>();
      for (const [name, value] of Object.entries(results)) out.set(name, fromOrt(name, value));
      return out;
    },
    release: () => inner.release(),
  };
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

const TO_ORT: Partial<Record<DType, ort.Tensor.Type>> = {
  f32: "float32",
  f64: "float64",
  f16: "float16",
  i64: "int64",
  i32: "int32",
  i16: "int16",
  i8: "int8",
  u8: "uint8",
  u16: "uint16",
  u32: "uint32",
  u64: "uint64",
  bool: "bool",
};

const FROM_ORT: ReadonlyMap<string, DType> = new Map(
  Object.entries(TO_ORT).map(([dtype, name]) => [name, dtype as DType]),
);

function allToOrt(tensors: ReadonlyMap<string, Tensor>): Record<string, ort.Tensor> {
  return Object.fromEntries([...tensors].map(([name, tensor]) => [name, toOrt(tensor)]));
}

function toOrt(tensor: Tensor): ort.Tensor {
  const type = TO_ORT[tensor.dtype];
  if (type === undefined) throw new MambacError("session/dtype", `cannot feed a tensor of type ${tensor.dtype}`);
  const bytes = tensor.bytes();
  return new ort.Tensor(type, typedArray(tensor.dtype, bytes), [...tensor.shape]);
}

/** A view of the bytes, or of a copy where they lie across the boundaries of their type. */
function typedArray(dtype: DType, bytes: Uint8Array): ort.Tensor.DataType {
  const width = (dtypeBits(dtype) ?? 8) / 8;
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % width === 0 ? bytes : bytes.slice();
  const length = byteLength / width;
  switch (dtype) {
    case "f32":
      return new Float32Array(buffer, byteOffset, length);
    case "f64":
      return new Float64Array(buffer, byteOffset, length);
    case "i64":
      return new BigInt64Array(buffer, byteOffset, length);
    case "u64":
      return new BigUint64Array(buffer, byteOffset, length);
    case "i32":
      return new Int32Array(buffer, byteOffset, length);
    case "u32":
      return new Uint32Array(buffer, byteOffset, length);
    case "i16":
      return new Int16Array(buffer, byteOffset, length);
    case "f16":
    case "u16":
      return new Uint16Array(buffer, byteOffset, length);
    case "i8":
      return new Int8Array(buffer, byteOffset, length);
    default:
      return new Uint8Array(buffer, byteOffset, length);
  }
}

function fromOrt(name: string, value: ort.OnnxValue): Tensor {
  const dtype = FROM_ORT.get(value.type);
  if (dtype === undefined || !ArrayBuffer.isView(value.data)) {
    throw new MambacError("session/dtype", `output ${name} has type ${value.type}, which mambac cannot read`);
  }
  return tensorFromBytes(dtype, value.dims, asBytes(value.data));
}
