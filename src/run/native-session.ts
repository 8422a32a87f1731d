/**
 * Sessions, tensors and bindings over ONNX Runtime's C API.
 *
 * Everything here owns native memory: `close()` (or `using`) gives it back, twice is harmless. A tensor does not own
 * its elements: it points into a typed array, which the tensor and any binding that uses it keep alive.
 */

import { type Tensor, tensorFromBytes } from "../ir/tensor.js";
import { type DType, dtypeFromNumber, dtypeNumber, packedBytes } from "../ir/types.js";
import { invariant, MambacError } from "../support/errors.js";
import { addressOf, loadOrt, type Ort } from "./ort-capi.js";

export interface NativeSessionOptions {
  /** Threads inside one operator; default 1. Several wait spinning, as ONNX Runtime's do unless `config` forbids it. */
  readonly threads?: number;
  /** Graph optimisation level; default 'all'. */
  readonly optimization?: "disabled" | "basic" | "extended" | "all";
  /** Path of an op library to register; its kernels take over from functions of the same name. */
  readonly library?: string;
  /** Session configuration entries, as ONNX Runtime spells them. */
  readonly config?: Readonly<Record<string, string>>;
  /** 0 verbose .. 4 fatal; default 4, since every error is thrown as well. */
  readonly logSeverity?: 0 | 1 | 2 | 3 | 4;
  /** Where to write the graph that the optimiser left. */
  readonly optimizedModelPath?: string;
  /** Prefix of the file that `endProfiling` finishes. */
  readonly profilePrefix?: string;
}

const OPTIMIZATION_LEVEL = { disabled: 0, basic: 1, extended: 2, all: 99 } as const;

/** A place in host memory that a session reads or writes: dense row-major elements of `dtype`. */
export interface Memory {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** Cache lines and the widest vectors are this long; states that straddle them cost kernels a seventh of their speed. */
const ALIGNMENT = 64;

/** Zero-filled memory with a buffer of its own that starts on a cache line once ONNX Runtime is loaded. */
export function allocate(byteLength: number): Uint8Array {
  const buffer = new ArrayBuffer(byteLength + ALIGNMENT);
  const past = Number(addressOf(new Uint8Array(buffer)) % BigInt(ALIGNMENT));
  return new Uint8Array(buffer, (ALIGNMENT - past) % ALIGNMENT, byteLength);
}

/** Loads a model from a path, or from bytes (which must not refer to external files). Throws `ort/...`. */
export async function openNativeSession(
  model: string | Uint8Array,
  options: NativeSessionOptions = {},
): Promise<NativeSession> {
  const ort = await loadOrt();
  const settings = ort.fn.CreateSessionOptions();
  try {
    applyOptions(ort, settings, options);
    const session =
      typeof model === "string"
        ? ort.fn.CreateSession(ort.env, model, settings)
        : ort.fn.CreateSessionFromArray(ort.env, model, model.byteLength, settings);
    return new NativeSession(ort, session);
  } finally {
    ort.fn.ReleaseSessionOptions(settings);
  }
}

function applyOptions(ort: Ort, settings: bigint, options: NativeSessionOptions): void {
  const { fn } = ort;
  fn.SetSessionLogSeverityLevel(settings, options.logSeverity ?? 4);
  fn.SetIntraOpNumThreads(settings, options.threads ?? 1);
  fn.SetInterOpNumThreads(settings, 1);
  fn.SetSessionGraphOptimizationLevel(settings, OPTIMIZATION_LEVEL[options.optimization ?? "all"]);
  // One token is a hundred short operators: threads that sleep between them cost a third of the speed.
  const spinning = (options.threads ?? 1) > 1 ? "1" : "0";
  const config = {
    "session.intra_op.allow_spinning": spinning,
    "session.inter_op.allow_spinning": "0",
    ...options.config,
  };
  for (const [key, value] of Object.entries(config)) fn.AddSessionConfigEntry(settings, key, value);
  if (options.optimizedModelPath !== undefined) fn.SetOptimizedModelFilePath(settings, options.optimizedModelPath);
  if (options.profilePrefix !== undefined) fn.EnableProfiling(settings, options.profilePrefix);
  if (options.library !== undefined) fn.RegisterCustomOpsLibraryV2(settings, options.library);
}

/** A loaded model. Calls block the thread; one session serves one caller at a time. */
export class NativeSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly #ort: Ort;
  #handle: bigint;

  constructor(ort: Ort, handle: bigint) {
    this.#ort = ort;
    this.#handle = handle;
    const { fn } = ort;
    this.inputNames = Array.from({ length: fn.SessionGetInputCount(handle) }, (_, i) =>
      ort.takeString(fn.SessionGetInputName(handle, i, ort.allocator)),
    );
    this.outputNames = Array.from({ length: fn.SessionGetOutputCount(handle) }, (_, i) =>
      ort.takeString(fn.SessionGetOutputName(handle, i, ort.allocator)),
    );
  }

  get handle(): bigint {
    invariant(this.#handle !== 0n, "the session is closed");
    return this.#handle;
  }

  /** A tensor over memory of the caller, without a copy. Throws `ort/tensor` unless the bytes fit. */
  tensor(memory: Memory): NativeTensor {
    return new NativeTensor(this.#ort, memory);
  }

  /** An empty binding for this session; close it before the session. */
  bind(): NativeBinding {
    return new NativeBinding(this.#ort, this);
  }

  /** Runs once with given inputs and gives copies of the outputs (all of them by default). */
  run(feeds: ReadonlyMap<string, Memory | Tensor>, outputs: readonly string[] = this.outputNames): Map<string, Tensor> {
    const binding = this.bind();
    try {
      for (const [name, feed] of feeds) binding.input(name, isMemory(feed) ? feed : copyOf(feed));
      for (const name of outputs) binding.allocateOutput(name);
      return binding.run();
    } finally {
      binding.close();
    }
  }

  /** Ends profiling and gives the path of the file with the events. */
  endProfiling(): string {
    return this.#ort.takeString(this.#ort.fn.SessionEndProfiling(this.handle, this.#ort.allocator));
  }

  close(): void {
    if (this.#handle === 0n) return;
    this.#ort.fn.ReleaseSession(this.#handle);
    this.#handle = 0n;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function isMemory(feed: Memory | Tensor): feed is Memory {
  return feed.bytes instanceof Uint8Array;
}

function copyOf(tensor: Tensor): Memory {
  const bytes = allocate(tensor.byteLength);
  bytes.set(tensor.bytes());
  return { dtype: tensor.dtype, shape: tensor.shape, bytes };
}

/** ONNX Runtime wants an address even for a tensor without elements. */
const NOTHING = allocate(8);

/** An OrtValue over memory of the caller. */
export class NativeTensor {
  readonly memory: Memory;
  readonly #ort: Ort;
  #handle: bigint;

  constructor(ort: Ort, memory: Memory) {
    const { dtype, shape, bytes } = memory;
    if (packedBytes(dtype, shape) !== bytes.byteLength) {
      throw new MambacError(
        "ort/tensor",
        `a tensor ${dtype}[${shape.join(",")}] needs ${packedBytes(dtype, shape)} bytes, not ${bytes.byteLength}`,
      );
    }
    this.memory = memory;
    this.#ort = ort;
    // Never empty: a scalar still passes an address.
    const dims = BigInt64Array.from([...shape, 0], BigInt);
    this.#handle = ort.fn.CreateTensorWithData(
      ort.cpu,
      bytes.byteLength === 0 ? NOTHING : bytes,
      bytes.byteLength,
      dims,
      shape.length,
      dtypeNumber(dtype),
    );
  }

  get handle(): bigint {
    invariant(this.#handle !== 0n, "the tensor is closed");
    return this.#handle;
  }

  close(): void {
    if (this.#handle === 0n) return;
    this.#ort.fn.ReleaseValue(this.#handle);
    this.#handle = 0n;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Inputs and outputs bound once, run many times. Memory is read and written in place, so the caller changes the
 * elements between runs; binding one memory as input and output is allowed and carries state in place.
 */
export class NativeBinding {
  readonly #ort: Ort;
  readonly #session: NativeSession;
  readonly #owned: NativeTensor[] = [];
  /** Every bound output in binding order: what ONNX Runtime counts by; null where it allocates. */
  readonly #outputs: { readonly name: string; readonly bound: boolean }[] = [];
  #handle: bigint;

  constructor(ort: Ort, session: NativeSession) {
    this.#ort = ort;
    this.#session = session;
    this.#handle = ort.fn.CreateIoBinding(session.handle);
  }

  /** Binds an input to memory, which must stay as it is until the binding is closed. */
  input(name: string, memory: Memory): void {
    const tensor = this.#own(memory);
    this.#ort.fn.BindInput(this.handle, name, tensor.handle);
  }

  /** Binds an output to memory of exactly the size the run will produce. */
  output(name: string, memory: Memory): void {
    const tensor = this.#own(memory);
    this.#ort.fn.BindOutput(this.handle, name, tensor.handle);
    this.#outputs.push({ name, bound: true });
  }

  /** Asks for an output whose shape is not known before the run; `run` gives a copy. */
  allocateOutput(name: string): void {
    this.#ort.fn.BindOutputToDevice(this.handle, name, this.#ort.cpu);
    this.#outputs.push({ name, bound: false });
  }

  /** Runs; gives copies of the outputs asked for with `allocateOutput`. Throws `ort/RunWithBinding`. */
  run(): Map<string, Tensor> {
    this.#ort.fn.RunWithBinding(this.#session.handle, 0n, this.handle);
    return this.#outputs.some((output) => !output.bound) ? this.#collect() : new Map<string, Tensor>();
  }

  close(): void {
    if (this.#handle === 0n) return;
    this.#ort.fn.ReleaseIoBinding(this.#handle);
    this.#handle = 0n;
    for (const tensor of this.#owned) tensor.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  get handle(): bigint {
    invariant(this.#handle !== 0n, "the binding is closed");
    return this.#handle;
  }

  #own(memory: Memory): NativeTensor {
    const tensor = new NativeTensor(this.#ort, memory);
    this.#owned.push(tensor);
    return tensor;
  }

  #collect(): Map<string, Tensor> {
    const { fn } = this.#ort;
    const [arrayOut, countOut] = [new BigUint64Array(1), new BigUint64Array(1)];
    fn.GetBoundOutputValues(this.handle, this.#ort.allocator, arrayOut, countOut);
    const [array = 0n, count = 0n] = [arrayOut[0], countOut[0]];
    const values = new BigUint64Array(this.#ort.readBytes(array, Number(count) * 8).buffer);
    try {
      invariant(values.length === this.#outputs.length, "ONNX Runtime returned another number of outputs than bound");
      const out = new Map<string, Tensor>();
      this.#outputs.forEach((output, i) => {
        if (!output.bound) out.set(output.name, this.#read(output.name, values[i] ?? 0n));
      });
      return out;
    } finally {
      for (const value of values) fn.ReleaseValue(value);
      fn.AllocatorFree(this.#ort.allocator, array);
    }
  }

  #read(name: string, value: bigint): Tensor {
    const { fn } = this.#ort;
    const info = fn.GetTensorTypeAndShape(value);
    try {
      const shape = new BigInt64Array(fn.GetDimensionsCount(info));
      if (shape.length > 0) fn.GetDimensions(info, shape, shape.length);
      const type = new Int32Array(1);
      fn.GetTensorElementType(info, type);
      const dtype = dtypeFromNumber(type[0] ?? 0);
      const dims = Array.from(shape, Number);
      const length = dtype === null ? null : packedBytes(dtype, dims);
      if (dtype === null || length === null) {
        throw new MambacError("ort/dtype", `output ${name} has element type ${type[0]}, which mambac cannot read`);
      }
      return tensorFromBytes(dtype, dims, this.#ort.readBytes(fn.GetTensorMutableData(value), length));
    } finally {
      fn.ReleaseTensorTypeAndShapeInfo(info);
    }
  }
}
