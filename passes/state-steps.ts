/** The step that chooses the state format, with what it asks of calibration data where its scales are frozen. */

import { GraphBuilder } from "../src/ir/builder.js";
import { type Model, makeValue } from "../src/ir/graph.js";
import { tensorType } from "../src/ir/types.js";
import { isStatic } from "../src/ops/names.js";
import type { StatRequest } from "../src/quant/calibration.js";
import { type GivenSteps, staticSteps } from "../src/quant/static-steps.js";
import type { Statistics } from "../src/quant/statistics.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { calibratedStep, type Observation, type Step, step } from "../src/rewrite/pipeline.js";
import { type ScanOp, type StateChoice, semanticOps } from "../src/rewrite/semantic.js";
import { quantizeState } from "./quantize-state.js";

/** Tokens between two looks at a state while calibrating. */
const WINDOW = 8;

/** quantize-state, calibrated where the choice needs that. */
export function stateStep(choice: StateChoice): Step {
  // Replay of static scales is refused by the pass, which need not wait for calibration.
  if (!isStatic(choice) || choice.requantize === "replay") return step(quantizeState, choice);
  const sizes = new Map<string, ScanOp>();
  return calibratedStep(
    quantizeState,
    (model) => {
      for (const op of scansOf(model)) sizes.set(op.layer, op);
      return [...sizes.values()].map((op): StatRequest => ({ value: flatName(op), kind: "absmax", perChannel: true }));
    },
    (statistics) => ({ ...choice, steps: (op: ScanOp) => stepsOf(op, statistics, choice) }),
    OBSERVATION,
  );
}

function scansOf(model: Model): ScanOp[] {
  return semanticOps(model.graph.nodes).flatMap((op) => (op.kind === "scan" && op.family === "mamba2" ? [op] : []));
}

/** All values of a state after a call, in one axis. */
function flatName(op: ScanOp): string {
  return `mambac.watched.${op.layer}`;
}

const OBSERVATION: Observation = {
  window: WINDOW,
  instrument: (model) => {
    const edit = new GraphEdit(model.graph);
    for (const op of scansOf(model)) {
      const builder = new GraphBuilder(`${flatName(op)}.`);
      const state = op.node.outputs[1] ?? "";
      builder.op("Reshape", [state, builder.ints([0, -1])], {}, flatName(op));
      edit.addNodes(builder.nodes);
      edit.addInitializers(builder.initializers);
      // An output, as what nothing reads is left out.
      edit.addOutput(makeValue(flatName(op), tensorType("f32", [null, op.heads * op.headDim * op.dState])));
    }
    return { ...model, graph: edit.commit() };
  },
};

function stepsOf(op: ScanOp, statistics: Statistics, { format }: StateChoice): GivenSteps {
  const { heads, headDim, dState } = op;
  const peaks = statistics.channelAbsMax(flatName(op));
  const natural = op.stateLayout === "NP" ? transposed(peaks, heads, dState, headDim) : peaks;
  return staticSteps(natural, op, format === "h8" ? "h8" : "h4");
}

/** [heads, rows, columns] as [heads, columns, rows]. */
function transposed(values: Float64Array, heads: number, rows: number, columns: number): Float64Array {
  const out = new Float64Array(values.length);
  for (let h = 0; h < heads; h++) {
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        out[(h * columns + c) * rows + r] = values[(h * rows + r) * columns + c] ?? 0;
      }
    }
  }
  return out;
}
