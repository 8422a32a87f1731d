/** Models between two passes, made to run: in a session for a trial, or over data for statistics. */

import type { Model } from "./ir/graph.js";
import { encodeModel } from "./onnx/write.js";
import type { Execute } from "./rewrite/pass.js";
import { runSteps, type Step } from "./rewrite/pipeline.js";
import { type SemanticOp, semanticOps } from "./rewrite/semantic.js";
import { stateSlots } from "./rewrite/states.js";
import { openSession } from "./run/session.js";

/** Runs small models in ONNX Runtime as written, one thread unless asked. */
export function executor(threads: number): Execute {
  return async (model, feeds) => {
    const session = await openSession(encodeModel(model), { threads });
    try {
      return await session.run(feeds);
    } finally {
      await session.release();
    }
  };
}

/** The model with its pairs of states in the metadata, where sessions look for them. */
export function withStateNames(model: Model, ops: readonly SemanticOp[]): Model {
  const states = ops
    .flatMap(stateSlots)
    .map(({ op, input, output }) => ({ input: op.node.inputs[input], output: op.node.outputs[output] }));
  return { ...model, metadata: new Map([...model.metadata, ["mambac.states", JSON.stringify(states)]]) };
}

/** What `steps` make of a model that has all its states: plain operators, pairs of states named in the metadata. */
export async function executableModel(model: Model, steps: readonly Step[], threads: number): Promise<Model> {
  const hooks = { execute: executor(threads), report: () => undefined, now: () => performance.now() };
  const known = new Set(steps.flatMap(({ requires }) => requires));
  const { model: ready } = await runSteps(model, steps, hooks, known);
  return withStateNames(ready, semanticOps(model.graph.nodes));
}
