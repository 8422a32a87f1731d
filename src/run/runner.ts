/** One call of a model over memory of the caller: what both backends can do. */

import { type Tensor, tensorFromBytes } from "../ir/tensor.js";
import { MambacError } from "../support/errors.js";
import { type Memory, type NativeBinding, type NativeSession } from "./native-session.js";
import type { Session } from "./session.js";

/** Inputs and outputs of a call by name. An output without memory has a shape that only the run will tell. */
export interface CallPlan {
  readonly inputs: ReadonlyMap<string, Memory>;
  readonly outputs: ReadonlyMap<string, Memory | null>;
  /** The same plan object will be run again with the same memory. */
  readonly reusable: boolean;
}

export interface Runner {
  readonly backend: "c-api" | "node";
  /** Runs the plan; gives the outputs that had no memory. */
  run(plan: CallPlan): Promise<ReadonlyMap<string, Tensor>>;
  close(): Promise<void>;
}

/** Runs plans in a C-API session; bindings of reusable plans are kept. */
export function nativeRunner(session: NativeSession): Runner {
  const kept = new Map<CallPlan, NativeBinding>();
  return {
    backend: "c-api",
    async run(plan) {
      const cached = kept.get(plan);
      if (cached !== undefined) return cached.run();
      const binding = session.bind();
      try {
        bindAll(binding, plan);
        const results = binding.run();
        if (plan.reusable) kept.set(plan, binding);
        return results;
      } finally {
        if (!kept.has(plan)) binding.close();
      }
    },
    async close() {
      for (const binding of kept.values()) binding.close();
      kept.clear();
      session.close();
    },
  };
}

function bindAll(binding: NativeBinding, plan: CallPlan): void {
  for (const [name, memory] of plan.inputs) binding.input(name, memory);
  for (const [name, memory] of plan.outputs) {
    if (memory === null) binding.allocateOutput(name);
    else binding.output(name, memory);
  }
}

/** Runs plans through onnxruntime-node, which copies inputs and outputs. */
export function nodeRunner(session: Session): Runner {
  return {
    backend: "node",
    async run(plan) {
      const feeds = new Map<string, Tensor>();
      for (const [name, m] of plan.inputs) feeds.set(name, tensorFromBytes(m.dtype, m.shape, m.bytes));
      const results = await session.run(feeds, [...plan.outputs.keys()]);
      const rest = new Map<string, Tensor>();
      for (const [name, memory] of plan.outputs) {
        const result = results.get(name);
        if (result === undefined) continue;
        if (memory === null) rest.set(name, result);
        else memory.bytes.set(result.bytes());
      }
      return rest;
    },
    close: () => session.release(),
  };
}

/** Memory filled with integers. Throws `run/dtype` for element types other than i64, i32 and bool. */
export function integerMemory(dtype: Memory["dtype"], shape: readonly number[], values: readonly number[]): Memory {
  switch (dtype) {
    case "i64":
      return { dtype, shape, bytes: new Uint8Array(BigInt64Array.from(values, BigInt).buffer) };
    case "i32":
      return { dtype, shape, bytes: new Uint8Array(Int32Array.from(values).buffer) };
    case "bool":
      return { dtype, shape, bytes: Uint8Array.from(values) };
    default:
      throw new MambacError("run/dtype", `mambac feeds tokens, positions and masks as integers, not as ${dtype}`);
  }
}
