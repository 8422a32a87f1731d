/**
 * The part of ONNX Runtime's C API that mambac calls, as data.
 *
 * `OrtApi` is an append-only table of function pointers: a slot number never changes once released, so functions are
 * found by index and no header is needed. Version 18 of the table holds everything used here.
 */

/** The table version asked for; hosts from ONNX Runtime 1.18 have it. */
export const API_VERSION = 18;

/** Slots in an API-18 table; reading further would leave the table of the oldest host allowed. */
export const TABLE_LENGTH = 278;

/**
 * `ptr` is an address, 0n for null. `data` is a typed array: it is passed itself, never its address, so that it stays
 * alive and in place during the call. `path` is `char*`, but `wchar_t*` on Windows.
 */
export type Argument = "ptr" | "data" | "str" | "path" | "int" | "size";

/**
 * What a call gives. `status`: nothing, or an error; `handle`: a status, and an address through a trailing out
 * parameter; `size`: a status, and a count likewise; `text`, `void`: the plain C result.
 */
export type Result = "status" | "handle" | "size" | "text" | "void";

export interface Slot {
  readonly slot: number;
  readonly args: readonly Argument[];
  readonly result: Result;
}

export const SLOTS = {
  GetErrorMessage: { slot: 2, args: ["ptr"], result: "text" },
  ReleaseStatus: { slot: 93, args: ["ptr"], result: "void" },
  CreateEnv: { slot: 3, args: ["int", "str"], result: "handle" },
  CreateSession: { slot: 7, args: ["ptr", "path", "ptr"], result: "handle" },
  CreateSessionFromArray: { slot: 8, args: ["ptr", "data", "size", "ptr"], result: "handle" },
  ReleaseSession: { slot: 95, args: ["ptr"], result: "void" },
  CreateSessionOptions: { slot: 10, args: [], result: "handle" },
  ReleaseSessionOptions: { slot: 100, args: ["ptr"], result: "void" },
  SetOptimizedModelFilePath: { slot: 11, args: ["ptr", "path"], result: "status" },
  EnableProfiling: { slot: 14, args: ["ptr", "path"], result: "status" },
  SessionEndProfiling: { slot: 110, args: ["ptr", "ptr"], result: "handle" },
  SetSessionLogSeverityLevel: { slot: 22, args: ["ptr", "int"], result: "status" },
  SetSessionGraphOptimizationLevel: { slot: 23, args: ["ptr", "int"], result: "status" },
  SetIntraOpNumThreads: { slot: 24, args: ["ptr", "int"], result: "status" },
  SetInterOpNumThreads: { slot: 25, args: ["ptr", "int"], result: "status" },
  AddSessionConfigEntry: { slot: 130, args: ["ptr", "str", "str"], result: "status" },
  RegisterCustomOpsLibraryV2: { slot: 228, args: ["ptr", "path"], result: "status" },
  SessionGetInputCount: { slot: 30, args: ["ptr"], result: "size" },
  SessionGetOutputCount: { slot: 31, args: ["ptr"], result: "size" },
  SessionGetInputName: { slot: 36, args: ["ptr", "size", "ptr"], result: "handle" },
  SessionGetOutputName: { slot: 37, args: ["ptr", "size", "ptr"], result: "handle" },
  GetAllocatorWithDefaultOptions: { slot: 78, args: [], result: "handle" },
  AllocatorFree: { slot: 76, args: ["ptr", "ptr"], result: "status" },
  CreateCpuMemoryInfo: { slot: 69, args: ["int", "int"], result: "handle" },
  ReleaseMemoryInfo: { slot: 94, args: ["ptr"], result: "void" },
  CreateTensorWithData: { slot: 49, args: ["ptr", "data", "size", "data", "size", "int"], result: "handle" },
  ReleaseValue: { slot: 96, args: ["ptr"], result: "void" },
  GetTensorMutableData: { slot: 51, args: ["ptr"], result: "handle" },
  GetTensorTypeAndShape: { slot: 65, args: ["ptr"], result: "handle" },
  ReleaseTensorTypeAndShapeInfo: { slot: 99, args: ["ptr"], result: "void" },
  GetDimensionsCount: { slot: 61, args: ["ptr"], result: "size" },
  GetDimensions: { slot: 62, args: ["ptr", "data", "size"], result: "status" },
  GetTensorElementType: { slot: 60, args: ["ptr", "data"], result: "status" },
  CreateIoBinding: { slot: 134, args: ["ptr"], result: "handle" },
  ReleaseIoBinding: { slot: 135, args: ["ptr"], result: "void" },
  BindInput: { slot: 136, args: ["ptr", "str", "ptr"], result: "status" },
  BindOutput: { slot: 137, args: ["ptr", "str", "ptr"], result: "status" },
  BindOutputToDevice: { slot: 138, args: ["ptr", "str", "ptr"], result: "status" },
  GetBoundOutputValues: { slot: 140, args: ["ptr", "ptr", "data", "data"], result: "status" },
  RunWithBinding: { slot: 133, args: ["ptr", "ptr", "ptr"], result: "status" },
} as const;

type ArgumentValue<A extends Argument> = A extends "ptr"
  ? bigint
  : A extends "data"
    ? ArrayBufferView
    : A extends "str" | "path"
      ? string
      : number;

type ResultValue<R extends Result> = R extends "handle"
  ? bigint
  : R extends "size"
    ? number
    : R extends "text"
      ? string
      : void;

type Arguments<A extends readonly Argument[]> = { readonly [I in keyof A]: ArgumentValue<A[I]> };

/** The bound functions. Those that return a status throw `MambacError` with ONNX Runtime's message. */
export type OrtFunctions = {
  readonly [K in keyof typeof SLOTS]: (
    ...args: Arguments<(typeof SLOTS)[K]["args"]>
  ) => ResultValue<(typeof SLOTS)[K]["result"]>;
};
