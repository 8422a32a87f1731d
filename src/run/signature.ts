/**
 * What the inputs and outputs of a language-model graph mean: token ids, positions, masks, logits, and the pairs of
 * recurrent state that one call hands to the next.
 *
 * A compiled model says so itself, in the graph metadata `mambac.states`. For graphs of others the names decide; the
 * spellings known are those of the transformers exporter, transformers.js, ONNX Runtime GenAI and mobius.
 */

import type { Graph, Model, ValueInfo } from "../ir/graph.js";
import type { Dim, DType, TensorType } from "../ir/types.js";
import { EXIT, MambacError } from "../support/errors.js";

/** Metadata key of the state pairs: JSON, an array of `{"input": name, "output": name}`. */
export const STATES_KEY = "mambac.states";

/** One tensor of state: `output` of a call is `input` of the next. */
export interface StatePair {
  readonly input: string;
  readonly output: string;
  readonly dtype: DType;
  /** Dimensions of the input; the first is the batch. */
  readonly shape: readonly Dim[];
  /** The axis that gets longer by the tokens of each call (attention caches), or null for recurrent state. */
  readonly growthAxis: number | null;
}

/** Inputs mambac fills in by itself. */
const AUXILIARY_INPUTS = ["position_ids", "attention_mask", "cache_position", "num_logits_to_keep"] as const;

type AuxiliaryName = (typeof AUXILIARY_INPUTS)[number];

export interface Auxiliary {
  readonly name: AuxiliaryName;
  readonly dtype: DType;
  readonly rank: number;
}

export interface Signature {
  readonly tokens: { readonly name: string; readonly dtype: "i64" | "i32"; readonly batch: Dim; readonly length: Dim };
  readonly logits: { readonly name: string; readonly dtype: DType; readonly shape: readonly Dim[] };
  readonly states: readonly StatePair[];
  readonly auxiliaries: readonly Auxiliary[];
}

/** Reads the signature of a model. Throws `signature/...` naming the input or output that has no meaning to mambac. */
export function readSignature(model: Model): Signature {
  const { graph } = model;
  // Older models list initialisers among the inputs; those have a value already.
  const inputs = new Map(graph.inputs.filter((i) => !graph.initializers.has(i.name)).map((i) => [i.name, i]));
  const outputs = new Map(graph.outputs.map((o) => [o.name, o]));
  // The metadata names what mambac compiled; attention caches it left alone keep the names of their source.
  const declared = declaredPairs(model);
  const claimed = new Set(declared.flatMap((pair) => [pair.input, pair.output]));
  const names = [
    ...declared,
    ...pairsByName(inputs, outputs).filter((p) => !claimed.has(p.input) && !claimed.has(p.output)),
  ];
  const states = names.map((pair) => statePair(pair, inputs, outputs));

  const stateInputs = new Set(states.map((s) => s.input));
  const auxiliaries: Auxiliary[] = [];
  const candidates: ValueInfo[] = [];
  for (const input of inputs.values()) {
    if (stateInputs.has(input.name)) continue;
    const name = AUXILIARY_INPUTS.find((known) => known === input.name);
    if (name === undefined) candidates.push(input);
    else {
      const type = tensorOf(input, "input");
      auxiliaries.push({ name, dtype: type.dtype, rank: type.shape?.length ?? 2 });
    }
  }
  const tokens = tokenInput(candidates);
  const strangers = candidates.filter((c) => c.name !== tokens.name).map((c) => c.name);
  if (strangers.length > 0) {
    throw new MambacError(
      "signature/input",
      `the graph has inputs that mambac cannot fill: ${strangers.join(", ")}. Known are token ids, ` +
        `${AUXILIARY_INPUTS.join(", ")} and state pairs (metadata ${STATES_KEY}, or names such as past_x/present_x)`,
      EXIT.unsupported,
    );
  }
  return { tokens, logits: logitsOutput(graph, new Set(states.map((s) => s.output))), states, auxiliaries };
}

interface PairNames {
  readonly input: string;
  readonly output: string;
}

function declaredPairs(model: Model): readonly PairNames[] {
  const text = model.metadata.get(STATES_KEY) ?? model.graph.metadata.get(STATES_KEY);
  if (text === undefined) return [];
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new MambacError("signature/metadata", `the metadata ${STATES_KEY} is not JSON`, EXIT.usage, { cause });
  }
  if (!Array.isArray(value)) throw badStates("is not an array");
  return value.map((entry: unknown) => {
    if (typeof entry !== "object" || entry === null) throw badStates("has an entry that is not an object");
    const { input, output } = entry as { readonly input?: unknown; readonly output?: unknown };
    if (typeof input !== "string" || typeof output !== "string")
      throw badStates("has an entry without input and output");
    return { input, output };
  });
}

function badStates(what: string): MambacError {
  return new MambacError("signature/metadata", `the metadata ${STATES_KEY} ${what}`);
}

/** From a state input's name, the names its output may have. */
const SPELLINGS: readonly (readonly [RegExp, readonly string[]])[] = [
  [/^past_key_values\.(.+)$/, ["present.$1", "present_key_values.$1"]],
  [/^past_states\.(.+)$/, ["present.$1", "present_states.$1"]],
  [/^past[_.](.+)$/, ["present_$1", "present.$1"]],
  [/^input\.(.+)$/, ["output.$1"]],
];

function pairsByName(inputs: ReadonlyMap<string, ValueInfo>, outputs: ReadonlyMap<string, ValueInfo>): PairNames[] {
  const pairs: PairNames[] = [];
  for (const input of inputs.keys()) {
    const output = SPELLINGS.flatMap(([pattern, results]) =>
      pattern.test(input) ? results.map((result) => input.replace(pattern, result)) : [],
    ).find((name) => outputs.has(name));
    if (output !== undefined) pairs.push({ input, output });
  }
  return pairs;
}

function statePair(
  names: PairNames,
  inputs: ReadonlyMap<string, ValueInfo>,
  outputs: ReadonlyMap<string, ValueInfo>,
): StatePair {
  const input = inputs.get(names.input);
  const output = outputs.get(names.output);
  if (input === undefined || output === undefined) {
    const missing = input === undefined ? `input ${names.input}` : `output ${names.output}`;
    throw new MambacError("signature/state", `the state pair ${names.input} -> ${names.output} lacks its ${missing}`);
  }
  const past = tensorOf(input, "state input");
  const present = tensorOf(output, "state output");
  if (past.dtype !== present.dtype || past.shape === null || past.shape.length === 0) {
    throw new MambacError(
      "signature/state",
      `the state pair ${names.input} -> ${names.output} must be two tensors of one type and known rank`,
    );
  }
  return { ...names, dtype: past.dtype, shape: past.shape.map(numeric), growthAxis: growthAxis(past, present) };
}

/** Some exporters spell constants as symbols: "80". */
function numeric(dim: Dim): Dim {
  return typeof dim === "string" && /^\d+$/.test(dim) ? Number(dim) : dim;
}

/** The one axis after the batch whose symbol changes between past and present: `past_length` -> `total_length`. */
function growthAxis(past: TensorType, present: TensorType): number | null {
  const before = past.shape?.map(numeric) ?? [];
  const after = present.shape?.map(numeric) ?? [];
  if (before.length !== after.length) return null;
  const axes = before.flatMap((dim, axis) =>
    axis > 0 && typeof dim === "string" && typeof after[axis] === "string" && after[axis] !== dim ? [axis] : [],
  );
  return axes.length === 1 ? (axes[0] ?? null) : null;
}

const TOKEN_NAMES = ["input_ids", "tokens", "token_ids"];

function tokenInput(candidates: readonly ValueInfo[]): Signature["tokens"] {
  const named = candidates.find((c) => TOKEN_NAMES.includes(c.name));
  const integers = candidates.filter((c) => c.type?.kind === "tensor" && /^i(64|32)$/.test(c.type.dtype));
  const input = named ?? (integers.length === 1 ? integers[0] : undefined);
  if (input === undefined) {
    throw new MambacError("signature/tokens", "the graph has no input for token ids (input_ids)", EXIT.unsupported);
  }
  const { dtype, shape } = tensorOf(input, "token input");
  if ((dtype !== "i64" && dtype !== "i32") || shape?.length !== 2) {
    throw new MambacError(
      "signature/tokens",
      `the input ${input.name} must be int64 or int32 of shape [batch, length]`,
    );
  }
  return { name: input.name, dtype, batch: numeric(shape[0] ?? null), length: numeric(shape[1] ?? null) };
}

function logitsOutput(graph: Graph, states: ReadonlySet<string>): Signature["logits"] {
  const free = graph.outputs.filter((o) => !states.has(o.name));
  const output = free.find((o) => o.name === "logits") ?? (free.length === 1 ? free[0] : undefined);
  if (output === undefined) {
    throw new MambacError("signature/logits", "the graph has no output named logits", EXIT.unsupported);
  }
  const { dtype, shape } = tensorOf(output, "output");
  return { name: output.name, dtype, shape: (shape ?? []).map(numeric) };
}

function tensorOf(value: ValueInfo, what: string): TensorType {
  if (value.type?.kind === "tensor") return value.type;
  throw new MambacError("signature/type", `the ${what} ${value.name} is not a tensor of known type`, EXIT.unsupported);
}
