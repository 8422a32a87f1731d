/** The functions with one buffer bound as past and present: callers carry states in place. */

import { describe, expect, test } from "vitest";
import { f32Tensor, type Tensor } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { opNames, parseOpName } from "../../src/ops/names.js";
import { convNode } from "../../src/ops/nodes.js";
import { allocate, type Memory, openNativeSession } from "../../src/run/native-session.js";
import { Noise, oneNodeModel, randomData, type ScanSizes, scanFeeds, scanModel } from "./scan-case.js";

const SIZES = {
  batch: 2,
  heads: 4,
  headDim: 8,
  dState: 16,
  groups: 2,
  chunkSize: 4,
  dtMin: Number.NEGATIVE_INFINITY,
  dtMax: Number.POSITIVE_INFINITY,
};

function memoryOf(tensor: Tensor): Memory {
  const bytes = allocate(tensor.byteLength);
  bytes.set(tensor.bytes());
  return { dtype: tensor.dtype, shape: tensor.shape, bytes };
}

/** Runs once with buffers of its own, once in place; both must give the same bytes. */
async function check(model: Uint8Array, feeds: ReadonlyMap<string, Tensor>): Promise<void> {
  for (const optimization of ["disabled", "all"] as const) {
    using session = await openNativeSession(model, { optimization });
    const expected = session.run(feeds);
    using binding = session.bind();
    const y = expected.get("y");
    const past = feeds.get("past");
    if (y === undefined || past === undefined) throw new Error("not an operator of ours");
    const state = memoryOf(past);
    for (const [name, tensor] of feeds) binding.input(name, name === "past" ? state : memoryOf(tensor));
    const output: Memory = { dtype: y.dtype, shape: y.shape, bytes: allocate(y.byteLength) };
    binding.output("y", output);
    binding.output("present", state);
    binding.run();
    expect(output.bytes).toEqual(y.bytes());
    expect(state.bytes).toEqual(expected.get("present")?.bytes());
    expect(state.bytes).not.toEqual(past.bytes());
  }
}

describe("in place", () => {
  test.each(opNames().filter((name) => /^(Mamba|Causal)/.test(name)))("%s", async (name) => {
    const spec = parseOpName(name);
    for (const length of [1, 9]) {
      if (spec?.kind === "scan") {
        const s: ScanSizes = { ...SIZES, length };
        await check(scanModel(spec, s), scanFeeds(spec, s, randomData(spec, s, 5)));
      } else if (spec?.kind === "conv") {
        const inputs = ["x", "weight", "bias", "past"];
        const node = convNode({ activation: spec.activation, channels: 6, kernelSize: 4, stateWidth: 4 }, inputs, [
          "y",
          "present",
        ]);
        const noise = new Noise(length);
        const shapes = new Map([
          ["x", [2, 6, length]],
          ["weight", [6, 1, 4]],
          ["bias", [6]],
          ["past", [2, 6, 4]],
        ]);
        const feeds = new Map<string, Tensor>();
        for (const [input, shape] of shapes) {
          feeds.set(input, f32Tensor(shape, noise.normals(shape.reduce((a, b) => a * b))));
        }
        const types = new Map([...shapes].map(([input, shape]) => [input, tensorType("f32", shape)]));
        types.set("y", tensorType("f32", [2, 6, length])).set("present", tensorType("f32", [2, 6, 4]));
        await check(oneNodeModel(node, inputs, ["y", "present"], types), feeds);
      }
    }
  });
});
