/**
 * node --import tsx calibrate-memory.ts LAYERS SAMPLES CUT
 *
 * Calibrates a chain of layers over made-up data and prints the largest memory of the process in bytes. Weights are
 * computed on demand, so that only what calibration holds counts. CUT is `apart` or `together`.
 */

import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { type Model, makeModel } from "../../src/ir/graph.js";
import { asBytes, type Tensor, tensorFromSource } from "../../src/ir/tensor.js";
import type { StatRequest } from "../../src/quant/calibration.js";
import { openDataset } from "../../src/run/dataset.js";
import { collectStatistics } from "../../src/run/statistics.js";

const WIDTH = 768;
const VOCABULARY = 32;

/** Layers x + tanh(x W), and the names of what they read. */
function chain(layers: number): { readonly model: Model; readonly inputs: readonly string[] } {
  const builder = new GraphBuilder("");
  let stream = builder.op("Gather", [builder.initializer(weight(VOCABULARY, WIDTH)), "input_ids"], {}, "stream0");
  const inputs = [stream];
  for (let layer = 1; layer <= layers; layer++) {
    const product = builder.op("MatMul", [stream, builder.initializer(weight(WIDTH, WIDTH))]);
    stream = builder.op("Add", [stream, builder.op("Tanh", [product])], {}, `stream${layer}`);
    inputs.push(stream);
  }
  builder.op("MatMul", [stream, builder.initializer(weight(WIDTH, VOCABULARY))], {}, "logits");
  const model: Model = makeModel(
    builder.graph(
      "chain",
      [typed("input_ids", "i64", ["batch", "length"])],
      [typed("logits", "f32", ["batch", "length", VOCABULARY])],
    ),
  );
  return { model, inputs };
}

function weight(rows: number, columns: number): Tensor {
  const read = (offset: number, length: number): Uint8Array =>
    asBytes(
      Float32Array.from({ length: length / 4 }, (_, i) => Math.sin((offset / 4 + i) * 12.9898) / Math.sqrt(rows)),
    );
  return tensorFromSource("f32", [rows, columns], { read }, 0, "lazy");
}

async function main(layers: number, samples: number, cut: string): Promise<void> {
  const { model, inputs } = chain(layers);
  const dataset = await openDataset({ paths: ["random"], vocabulary: VOCABULARY, samples, sequenceLength: 64 });
  const requests = inputs.flatMap((value): StatRequest[] => [
    { value, kind: "second-moment", perChannel: true },
    { value, kind: "absmax", perChannel: true },
    { value, kind: "percentile", perChannel: false },
  ]);
  using statistics = await collectStatistics(model, requests, dataset, {
    boundaries: cut === "apart" ? inputs.slice(1) : [],
  });
  const last = inputs.at(-1) ?? "";
  if (!(statistics.absMax(last) > 0)) throw new Error("nothing was calibrated");
  process.stdout.write(`${process.resourceUsage().maxRSS * 1024}\n`);
}

const [layers, samples, cut = "apart"] = process.argv.slice(2);
await main(Number(layers), Number(samples), cut);
