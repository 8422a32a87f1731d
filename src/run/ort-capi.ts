/**
 * ONNX Runtime's C API through koffi: the only importer of koffi.
 *
 * It can do what onnxruntime-node cannot: register an op library, bind one buffer as past and present state, and run in
 * under a microsecond of overhead. koffi ships as prebuilt binaries, so no compiler is needed; where it is missing,
 * `loadOrt` says why and callers fall back to onnxruntime-node.
 */

import type * as koffiModule from "koffi";
import type { LibraryHandle, TypeObject } from "koffi";
import { assertNever, MambacError } from "../support/errors.js";
import { findOnnxRuntime } from "./locate.js";
import "./no-telemetry.js";
import {
  API_VERSION,
  type Argument,
  type OrtFunctions,
  type Result,
  SLOTS,
  type Slot,
  TABLE_LENGTH,
} from "./ort-capi-table.js";

/** A loaded ONNX Runtime with its one environment. */
export interface Ort {
  readonly path: string;
  readonly version: string;
  readonly fn: OrtFunctions;
  /** The environment, made once per process and never released: sessions may outlive any owner it could have. */
  readonly env: bigint;
  /** Describes host memory. */
  readonly cpu: bigint;
  /** The default allocator: what ONNX Runtime uses for the strings and arrays it returns. */
  readonly allocator: bigint;
  /** A copy of `length` bytes at an address. */
  readBytes(address: bigint, length: number): Uint8Array;
  /** A NUL-terminated string made by ONNX Runtime; the original is freed. */
  takeString(address: bigint): string;
}

type Koffi = typeof koffiModule;

type RawCall = (...args: unknown[]) => unknown;

/** koffi unloads a library when its handle is collected, and the next call would crash: so every handle stays here. */
const handles: LibraryHandle[] = [];

let loading: Promise<Ort> | null = null;
let address: ((bytes: Uint8Array) => bigint) | null = null;

/** Where `bytes` are in memory; 0 until ONNX Runtime is loaded. Buffers do not move. */
export function addressOf(bytes: Uint8Array): bigint {
  return address === null ? 0n : address(bytes);
}

/** Loads ONNX Runtime once per process. Throws `ort/koffi`, `ort/not-found`, `ort/load` or `ort/version`. */
export function loadOrt(): Promise<Ort> {
  loading ??= load();
  return loading;
}

async function load(): Promise<Ort> {
  const path = findOnnxRuntime();
  const koffi = await importKoffi();
  let library: LibraryHandle;
  try {
    library = koffi.load(path);
  } catch (cause) {
    throw new MambacError(
      "ort/load",
      `cannot load ${path}: ${messageOf(cause)}. The shipped Linux builds need glibc (not musl); ` +
        "set MAMBAC_ONNXRUNTIME to a libonnxruntime built for this system",
      undefined,
      { cause },
    );
  }
  handles.push(library);
  address = koffi.address;
  return bind(koffi, library, path);
}

async function importKoffi(): Promise<Koffi> {
  try {
    return await import("koffi");
  } catch (cause) {
    throw new MambacError(
      "ort/koffi",
      `koffi cannot be loaded on ${process.platform}/${process.arch}: ${messageOf(cause)}`,
      undefined,
      { cause },
    );
  }
}

function bind(koffi: Koffi, library: LibraryHandle, path: string): Ort {
  const pointers = (address: bigint, count: number): (bigint | null)[] =>
    koffi.decode(address, koffi.array("void *", count)) as (bigint | null)[];
  const getBase = library.func("OrtGetApiBase", "void *", []);
  const [getApiAt, versionAt] = pointers(getBase() as bigint, 2);
  const readVersion = koffi.decode(versionAt, koffi.proto("str", [])) as RawCall;
  const version = readVersion() as string;
  requireVersion(version, path);
  const getApi = koffi.decode(getApiAt, koffi.proto("void *", ["uint32_t"])) as RawCall;
  const table = getApi(API_VERSION) as bigint | null;
  if (table === null) {
    throw new MambacError("ort/version", `ONNX Runtime ${version} at ${path} offers no C API version ${API_VERSION}`);
  }
  const addresses = pointers(table, TABLE_LENGTH);
  const raw = (slot: Slot): RawCall =>
    koffi.decode(addresses[slot.slot], koffi.proto(resultType(slot.result), argumentTypes(koffi, slot))) as RawCall;

  const errorMessage = raw(SLOTS.GetErrorMessage);
  const releaseStatus = raw(SLOTS.ReleaseStatus);
  const check = (name: string, status: bigint | null): void => {
    if (status === null) return;
    const message = errorMessage(status) as string;
    releaseStatus(status);
    throw new MambacError(`ort/${name}`, `ONNX Runtime ${version}: ${message}`);
  };
  const entries = Object.entries<Slot>(SLOTS).map(([name, slot]) => [name, wrap(name, slot, raw(slot), check)]);
  const fn = Object.fromEntries(entries) as OrtFunctions;
  const allocator = fn.GetAllocatorWithDefaultOptions();
  return {
    path,
    version,
    fn,
    env: fn.CreateEnv(LOG_FATAL, "mambac"),
    cpu: fn.CreateCpuMemoryInfo(ARENA_ALLOCATOR, MEMORY_DEFAULT),
    allocator,
    readBytes: (address, length) =>
      length === 0 ? new Uint8Array(0) : Uint8Array.from(koffi.decode(address, "uint8_t", length) as Uint8Array),
    takeString(address) {
      const text = koffi.decode.string(address);
      fn.AllocatorFree(allocator, address);
      return text;
    },
  };
}

const LOG_FATAL = 4;
const ARENA_ALLOCATOR = 1;
const MEMORY_DEFAULT = 0;

/** Throws `ort/version` for a host older than the table version asked for: asking it would print to stderr. */
function requireVersion(version: string, path: string): void {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  if (major > 1 || (major === 1 && minor >= API_VERSION)) return;
  throw new MambacError("ort/version", `ONNX Runtime ${version} at ${path} is too old: mambac needs 1.${API_VERSION}`);
}

function wrap(
  name: string,
  slot: Slot,
  call: RawCall,
  check: (name: string, status: bigint | null) => void,
): (...args: unknown[]) => unknown {
  switch (slot.result) {
    case "status":
      return (...args) => check(name, call(...args) as bigint | null);
    case "handle":
      return (...args) => {
        const out: (bigint | null)[] = [null];
        check(name, call(...args, out) as bigint | null);
        return out[0] ?? 0n;
      };
    case "size":
      return (...args) => {
        const out = [0];
        check(name, call(...args, out) as bigint | null);
        return Number(out[0]);
      };
    case "text":
    case "void":
      return call;
    default:
      return assertNever(slot.result);
  }
}

function argumentTypes(koffi: Koffi, slot: Slot): TypeObject[] {
  const types: unknown[] = slot.args.map(argumentType);
  if (slot.result === "handle") types.push(koffi.out(koffi.pointer("void *", 1)));
  if (slot.result === "size") types.push(koffi.out(koffi.pointer("size_t", 1)));
  return types as TypeObject[];
}

function argumentType(argument: Argument): string {
  switch (argument) {
    case "ptr":
    case "data":
      return "void *";
    case "str":
      return "str";
    case "path":
      return process.platform === "win32" ? "str16" : "str";
    case "int":
      return "int";
    case "size":
      return "size_t";
    default:
      return assertNever(argument);
  }
}

function resultType(result: Result): string {
  switch (result) {
    case "status":
    case "handle":
    case "size":
      return "void *";
    case "text":
      return "str";
    case "void":
      return "void";
    default:
      return assertNever(result);
  }
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
