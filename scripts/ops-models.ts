/** Models of nothing but scans, for timing operators inside ONNX Runtime: one or many layers over states in place. */

import { GraphBuilder, typed } from "../src/ir/builder.js";
import { type FunctionDef, type Model, makeModel, type ValueInfo } from "../src/ir/graph.js";
import { type Tensor, tensorFromBytes } from "../src/ir/tensor.js";
import type { DType } from "../src/ir/types.js";
import { packedBytes } from "../src/ir/types.js";
import { encodeModel } from "../src/onnx/write.js";
import { opFunction } from "../src/ops/functions.js";
import { isStatic, OP_DOMAIN, OP_VERSION, opName, parseOpName, stateType } from "../src/ops/names.js";
import { scanNode } from "../src/ops/nodes.js";
import {
  allocate,
  type Memory,
  type NativeBinding,
  type NativeSession,
  openNativeSession,
} from "../src/run/native-session.js";
import { openSession } from "../src/run/session.js";
import { Random } from "../src/support/random.js";

/** Sizes of every layer of a case. */
export interface Shape {
  readonly layers: number;
  readonly batch: number;
  readonly length: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  /** R of a replay state; default 16. */
  readonly replayLength?: number;
}

/**
 * A scan operator's name, LinearAttention, or the bare recurrence from four standard operators: all layers in one session,
 * or a layer at a time through onnxruntime-node, as programs without mambac step a state.
 */
export type Kind = string;

export const PRIMITIVES: Kind = "primitives";
export const NODE_PRIMITIVES: Kind = "primitives in onnxruntime-node";
export const LINEAR_ATTENTION: Kind = "LinearAttention";

/** A session with everything bound; `run` is one step of all layers, done when it returns or when what it returns resolves. */
export interface Runnable {
  readonly run: () => void | Promise<void>;
  readonly close: () => void;
}

interface Slot {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

interface Plan {
  readonly model: Model;
  readonly inputs: readonly Slot[];
  readonly states: readonly { readonly past: Slot; readonly present: string }[];
  readonly outputs: readonly Slot[];
}

export interface CaseSettings {
  readonly library: string;
  readonly threads: number;
  /** One buffer as past and present; otherwise the state is read from one and written to another. */
  readonly inPlace: boolean;
}

/** Opens a case. `library` is registered unless the operators are ONNX Runtime's own. */
export async function openCase(kind: Kind, shape: Shape, settings: CaseSettings): Promise<Runnable> {
  if (kind === NODE_PRIMITIVES) return openNodeCase(shape, settings.threads);
  const plan =
    kind === PRIMITIVES
      ? primitivePlan(shape)
      : kind === LINEAR_ATTENTION
        ? attentionPlan(shape)
        : scanPlan(kind, shape);
  const { library, threads, inPlace } = settings;
  // Threads of one session that wait spinning would take the cores of the session timed next.
  const options = { threads, config: { "session.force_spinning_stop": "1" } };
  const own = plan.model.functions.length > 0;
  const session = await openNativeSession(encodeModel(plan.model), own ? { ...options, library } : options);
  const binding = bindPlan(session, plan, inPlace);
  return {
    run: () => void binding.run(),
    close: () => {
      binding.close();
      session.close();
    },
  };
}

/** One session of one layer's four operators, run for every layer with tensors of its own for its states and result. */
async function openNodeCase(shape: Shape, threads: number): Promise<Runnable> {
  const plan = primitivePlan({ ...shape, layers: 1 });
  const session = await openSession(encodeModel(plan.model), { optimization: "all", threads });
  const random = new Random(3).split("ops");
  const tensor = ({ dtype, shape, bytes }: Memory): Tensor => tensorFromBytes(dtype, shape, bytes);
  const shared = plan.inputs.map((slot): [string, Tensor] => [slot.name, tensor(filled(slot, random))]);
  const layers = Array.from({ length: shape.layers }, () => {
    const feeds = new Map(shared);
    const outputs = new Map(plan.outputs.map((slot) => [slot.name, tensor(empty(slot))]));
    for (const { past, present } of plan.states) {
      feeds.set(past.name, tensor(empty(past)));
      outputs.set(present, tensor(empty(past)));
    }
    return { feeds, outputs };
  });
  return {
    run: async () => {
      for (const { feeds, outputs } of layers) {
        await session.run(feeds, outputs);
        for (const { past, present } of plan.states) {
          const [read, written] = [feeds.get(past.name), outputs.get(present)];
          if (read === undefined || written === undefined) throw new Error(`${past.name} is not bound`);
          feeds.set(past.name, written);
          outputs.set(present, read);
        }
      }
    },
    close: () => void session.release(),
  };
}

function bindPlan(session: NativeSession, plan: Plan, inPlace: boolean): NativeBinding {
  const binding = session.bind();
  const random = new Random(3).split("ops");
  for (const slot of plan.inputs) binding.input(slot.name, filled(slot, random));
  for (const { past, present } of plan.states) {
    const memory = empty(past);
    binding.input(past.name, memory);
    binding.output(present, inPlace ? memory : empty(past));
  }
  for (const slot of plan.outputs) binding.output(slot.name, empty(slot));
  return binding;
}

function empty({ dtype, shape }: Slot): Memory {
  return { dtype, shape, bytes: allocate(packedBytes(dtype, shape) ?? 0) };
}

/** Steps of static scales, by input: such that few codes are clipped. */
const STEPS: Readonly<Record<string, number>> = { row_step: 1, column_step: 1 / 16 };

/** Values like those of a trained model; decays stay below one, so that states neither grow nor vanish. */
function filled(slot: Slot, random: Random): Memory {
  const memory = empty(slot);
  const values = new Float32Array(memory.bytes.buffer);
  for (let i = 0; i < values.length; i++) {
    const value = 2 * random.uniform() - 1;
    values[i] =
      slot.name in STEPS
        ? (STEPS[slot.name] ?? 1)
        : slot.name === "A"
          ? -1 - Math.abs(value)
          : slot.name === "dt_bias"
            ? -2
            : slot.name === "decay"
              ? 0.9
              : value;
  }
  return memory;
}

function f32(name: string, ...shape: readonly number[]): Slot {
  return { name, dtype: "f32", shape };
}

function asModel(builder: GraphBuilder, plan: Omit<Plan, "model">, functions: readonly FunctionDef[]): Model {
  const value = ({ name, dtype, shape }: Slot): ValueInfo => typed(name, dtype, shape);
  const presents = plan.states.map(({ past, present }) => value({ ...past, name: present }));
  const inputs = [...plan.inputs, ...plan.states.map(({ past }) => past)].map(value);
  return makeModel(builder.graph("ops", inputs, [...plan.outputs.map(value), ...presents]), {
    opsets: new Map([
      ["", 21],
      ["com.microsoft", 1],
      [OP_DOMAIN, OP_VERSION],
    ]),
    functions,
  });
}

/** Layers of one operator that share their inputs; only the states are their own. */
function scanPlan(name: string, shape: Shape): Plan {
  const spec = parseOpName(name);
  if (spec?.kind !== "scan" || spec.family !== "mamba2") throw new Error(`${name} is no Mamba-2 scan`);
  const { layers, batch, heads, headDim, dState, replayLength = 16 } = shape;
  const dims = { heads, headDim, dState, groups: 1, replayLength };
  const type = stateType(spec, dims);
  const builder = new GraphBuilder("");
  const states: Plan["states"][number][] = [];
  const outputs: Slot[] = [];
  for (let layer = 0; layer < layers; layer++) {
    const past = { name: `past${layer}`, dtype: type.dtype, shape: [batch, ...type.shape] };
    states.push({ past, present: `present${layer}` });
    outputs.push(f32(`y${layer}`, batch, shape.length, heads, headDim));
    const bounds = { dtMin: Number.NEGATIVE_INFINITY, dtMax: Number.POSITIVE_INFINITY };
    builder.nodes.push(
      scanNode(
        { ...spec, ...bounds, ...dims, family: "mamba2" },
        ["x", "dt", "A", "B", "C", "D", "dt_bias", past.name, ...(isStatic(spec) ? Object.keys(STEPS) : [])],
        [`y${layer}`, `present${layer}`],
      ),
    );
  }
  const steps = isStatic(spec) ? [f32("row_step", heads, headDim), f32("column_step", 1, dState)] : [];
  const parts = { inputs: [...scanInputs(shape), ...steps], states, outputs };
  return { ...parts, model: asModel(builder, parts, [opFunction(opName(spec))]) };
}

function scanInputs({ batch, length, heads, headDim, dState }: Shape): Slot[] {
  return [
    f32("x", batch, length, heads, headDim),
    f32("dt", batch, length, heads),
    f32("A", heads),
    f32("B", batch, length, 1, dState),
    f32("C", batch, length, 1, dState),
    f32("D", heads, headDim),
    f32("dt_bias", heads),
  ];
}

/**
 * ONNX Runtime's own operator, with the step size and decay computed before it and the skip after it left out: the bare
 * operator. So mambac's, which does all of that, is compared with less work than it does.
 */
function attentionPlan(shape: Shape): Plan {
  const { layers, batch, length, heads, headDim, dState } = shape;
  const builder = new GraphBuilder("");
  const states: Plan["states"][number][] = [];
  const outputs: Slot[] = [];
  for (let layer = 0; layer < layers; layer++) {
    states.push({ past: f32(`past${layer}`, batch, heads, dState, headDim), present: `present${layer}` });
    outputs.push(f32(`y${layer}`, batch, length, heads * headDim));
    builder.ops(
      "LinearAttention",
      ["query", "key", "value", `past${layer}`, "A"],
      [`y${layer}`, `present${layer}`],
      { q_num_heads: 1, kv_num_heads: heads, update_rule: "gated", scale: { kind: "float", value: 1 } },
      "com.microsoft",
    );
  }
  const inputs = [
    f32("query", batch, length, dState),
    f32("key", batch, length, dState),
    f32("value", batch, length, heads * headDim),
    f32("A", batch, length, heads),
  ];
  const parts = { inputs, states, outputs };
  return { ...parts, model: asModel(builder, parts, []) };
}

/** h = decay * h + dx (outer) B, y = h C: four operators a layer, for one token; decay and dx are given. */
function primitivePlan(shape: Shape): Plan {
  const { layers, batch, heads, headDim, dState } = shape;
  const builder = new GraphBuilder("");
  const states: Plan["states"][number][] = [];
  const outputs: Slot[] = [];
  for (let layer = 0; layer < layers; layer++) {
    states.push({ past: f32(`past${layer}`, batch, heads, headDim, dState), present: `present${layer}` });
    outputs.push(f32(`y${layer}`, batch, heads, headDim, 1));
    const kept = builder.op("Mul", [`past${layer}`, "decay"]);
    const added = builder.op("Mul", ["dx", "B"]);
    builder.op("Add", [kept, added], {}, `present${layer}`);
    builder.op("MatMul", [`present${layer}`, "C"], {}, `y${layer}`);
  }
  const inputs = [
    f32("decay", batch, heads, 1, 1),
    f32("dx", batch, heads, headDim, 1),
    f32("B", batch, 1, 1, dState),
    f32("C", batch, 1, dState, 1),
  ];
  const parts = { inputs, states, outputs };
  return { ...parts, model: asModel(builder, parts, []) };
}
