/**
 * A model of a Triton model repository, for its ONNX Runtime backend: `config.pbtxt` and version 1.
 *
 * States are Triton's own (implicit state of the sequence batcher): it hands the output of a request to the next one of the
 * sequence and starts from zeros, so a client sends tokens and takes logits. The graph has no input for sequence controls and
 * needs none, and sequences are batched by age, which never puts an empty slot into a batch.
 * Source: Triton's model_config.proto, and the checks of its sequence batch scheduler and ONNX Runtime backend.
 */

import { basename } from "node:path";
import type { Dim, DType } from "../ir/types.js";
import type { StatePair } from "../run/signature.js";
import { EXIT, MambacError } from "../support/errors.js";
import { carriedStates, type PackagePlan, type PackageSource } from "./plan.js";

/** Where version 1 lies. */
const VERSION_FOLDER = "1";

const TYPES: Partial<Record<DType, string>> = {
  bool: "TYPE_BOOL",
  f16: "TYPE_FP16",
  f32: "TYPE_FP32",
  i8: "TYPE_INT8",
  i32: "TYPE_INT32",
  i64: "TYPE_INT64",
  u8: "TYPE_UINT8",
};

/**
 * The plan of `REPOSITORY/<name>`. Throws `package/states`, and `package/triton` for attention caches, whose states start
 * empty, and for batches that Triton could not form.
 */
export function tritonPackage(source: PackageSource): PackagePlan {
  const states = carriedStates(source);
  const growing = states.find((state) => state.growthAxis !== null);
  if (growing !== undefined) {
    throw refusal(
      `the attention cache ${growing.input} starts empty and grows with every token; Triton's implicit state starts with ` +
        "a size that is given, so a hybrid cannot keep its state there",
    );
  }
  const library = source.library === null ? null : basename(source.library);
  return {
    model: { path: `${VERSION_FOLDER}/model.onnx`, dataSuffix: ".data" },
    texts: [{ path: "config.pbtxt", text: configText(source, states, library) }],
    copies:
      source.library === null || library === null
        ? []
        : [{ path: `${VERSION_FOLDER}/${library}`, from: source.library }],
    notes:
      library === null
        ? []
        : [
            `Triton looks for ${libraryPath(source.name, library)} from where it was started: start it in the repository`,
          ],
  };
}

/** Triton hands this to the dynamic loader as it is. */
function libraryPath(name: string, library: string): string {
  return `${name}/${VERSION_FOLDER}/${library}`;
}

function configText(source: PackageSource, states: readonly StatePair[], library: string | null): string {
  const { tokens, logits, auxiliaries } = source.signature;
  const batched = batchesOf(source, states);
  const inputs = [
    tensor(tokens.name, tokens.dtype, [tokens.batch, tokens.length], batched),
    ...auxiliaries.map(({ name, dtype, rank }) =>
      tensor(
        name,
        dtype,
        Array.from({ length: rank }, () => null),
        batched,
      ),
    ),
  ];
  const lines = [
    `name: ${quoted(source.name)}`,
    'backend: "onnxruntime"',
    ...(batched ? ["# Sequences in one call of the model.", "max_batch_size: 8"] : ["max_batch_size: 0"]),
    ...list("input", inputs),
    ...list("output", [tensor(logits.name, logits.dtype, logits.shape, batched)]),
    "sequence_batching {",
    "  # A sequence without a request for this long (a minute) is forgotten.",
    "  max_sequence_idle_microseconds: 60000000",
    "  oldest {",
    "    # Sequences whose states are in memory; more wait.",
    "    max_candidate_sequences: 64",
    "  }",
    ...list(
      "state",
      states.map((state) => stateBlock(state, batched)),
    ).map((line) => `  ${line}`),
    "}",
    ...(library === null
      ? []
      : ["model_operations {", `  op_library_filename: ${quoted(libraryPath(source.name, library))}`, "}"]),
  ];
  return `${lines.join("\n")}\n`;
}

/** Is the batch free, so that Triton may form batches? Then no dimension of the configuration is the batch. */
function batchesOf(source: PackageSource, states: readonly StatePair[]): boolean {
  const { tokens, logits, auxiliaries } = source.signature;
  const batches = [tokens.batch, logits.shape[0] ?? null, ...states.map((state) => state.shape[0] ?? null)];
  const fixed = batches.filter((dim) => typeof dim === "number");
  const unbatched = auxiliaries.find(({ rank }) => rank === 0 || rank === 1);
  if (fixed.length === 0 && unbatched === undefined) return true;
  if (fixed.length === batches.length) return false;
  throw refusal(
    unbatched !== undefined
      ? `the input ${unbatched.name} has no batch axis, so Triton cannot batch sequences`
      : "the batch is fixed in some inputs and free in others, so Triton can neither form batches nor leave them alone",
  );
}

function tensor(name: string, dtype: DType, shape: readonly Dim[], batched: boolean): string[] {
  return [`name: ${quoted(name)}`, `data_type: ${typeName(name, dtype)}`, `dims: ${dimsText(shape, batched)}`];
}

function stateBlock(state: StatePair, batched: boolean): string[] {
  const dims = dimsText(state.shape, batched);
  const type = typeName(state.input, state.dtype);
  if (dims.includes("-1")) {
    throw refusal(`the state ${state.input} has dimensions that are not fixed: ${state.shape.join(", ")}`);
  }
  return [
    `input_name: ${quoted(state.input)}`,
    `output_name: ${quoted(state.output)}`,
    `data_type: ${type}`,
    `dims: ${dims}`,
    "initial_state {",
    '  name: "zero"',
    `  data_type: ${type}`,
    `  dims: ${dims}`,
    "  zero_data: true",
    "}",
  ];
}

function dimsText(shape: readonly Dim[], batched: boolean): string {
  const dims = (batched ? shape.slice(1) : shape).map((dim) => (typeof dim === "number" ? dim : -1));
  return `[ ${dims.join(", ")} ]`;
}

function typeName(value: string, dtype: DType): string {
  const name = TYPES[dtype];
  if (name === undefined) throw refusal(`${value} has elements of type ${dtype}, which Triton does not know`);
  return name;
}

/** A repeated message in protobuf's text format. */
function list(field: string, items: readonly (readonly string[])[]): string[] {
  const bodies = items.flatMap((lines, at) => [
    "  {",
    ...lines.map((line) => `    ${line}`),
    at === items.length - 1 ? "  }" : "  },",
  ]);
  return [`${field} [`, ...bodies, "]"];
}

/** A string of the text format. */
function quoted(text: string): string {
  return `"${text.replace(/[\\"]/g, "\\$&")}"`;
}

function refusal(reason: string): MambacError {
  return new MambacError("package/triton", `no package for Triton: ${reason}`, EXIT.unsupported);
}
