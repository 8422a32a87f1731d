/** A sweep over a model that reads no tokens: every item is one call, and all of the model is one block. */

import { makeValue } from "../ir/graph.js";
import { f32Tensor } from "../ir/tensor.js";
import { encodeModel } from "../onnx/write.js";
import { EXIT, invariant, MambacError } from "../support/errors.js";
import { openSession } from "./session.js";
import type { SweepOptions, SweepVisitor } from "./sweep.js";

/** Runs the sweep; see `sweep`. A graph of a fixed batch gets the same item in every row. */
export async function sweepPlain(options: SweepOptions, visitor: SweepVisitor): Promise<void> {
  const { model, dataset, values } = options;
  const { graph } = model;
  const [input] = graph.inputs.filter(({ name }) => !graph.initializers.has(name));
  const shape = input?.type?.kind === "tensor" ? input.type.shape : null;
  invariant(input !== undefined && shape != null, "sweepPlain: items are for one input");
  const known = new Set(graph.nodes.flatMap((node) => node.outputs));
  const missing = values.find((name) => !known.has(name));
  if (missing !== undefined) {
    throw new MambacError("calibrate/value", `the model has no value ${missing}`, EXIT.calibration);
  }
  const batch = typeof shape[0] === "number" ? shape[0] : 1;
  const sizes = [batch, ...shape.slice(1).map(Number)];
  const outputs = values.map((name) => graph.outputs.find((output) => output.name === name) ?? makeValue(name, null));
  const session = await openSession(encodeModel({ ...model, graph: { ...graph, outputs } }), {
    optimization: "all",
    threads: options.threads ?? 1,
  });
  try {
    let done = 0;
    for await (const { index, item } of dataset.sequences()) {
      if (options.signal?.aborted === true) {
        throw new MambacError("calibrate/interrupted", "calibration was interrupted", EXIT.interrupted);
      }
      invariant(item !== undefined, "sweepPlain: the data are tokens");
      const rows = new Float32Array(batch * item.length);
      for (let row = 0; row < batch; row++) rows.set(item, row * item.length);
      const results = await session.run(new Map([[input.name, f32Tensor(sizes, rows)]]));
      for (const [name, tensor] of results) await visitor.value(name, tensor, { sequence: index, start: 0, length: 1 });
      done += 1;
      options.onProgress?.({ block: 0, blocks: 1, sequence: done, sequences: dataset.count });
    }
  } finally {
    await session.release();
  }
  await visitor.blockDone(values);
}
