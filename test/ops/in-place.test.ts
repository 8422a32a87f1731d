/** The functions with one buffer bound as past and present: callers carry states in place. */

import { describe, expect, test } from "vitest";
import { type Tensor } from "../../src/ir/tensor.js";
import { opNames, parseOpName } from "../../src/ops/names.js";
import { allocate, type Memory, openNativeSession } from "../../src/run/native-session.js";
import { convCase } from "./conv-case.js";
import { randomData, type ScanSizes, scanFeeds, scanModel } from "./scan-case.js";

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
async function check(
  model: Uint8Array,
  feeds: ReadonlyMap<string, Tensor>,
  parts: readonly string[] = ["y"],
): Promise<void> {
  for (const optimization of ["disabled", "all"] as const) {
    using session = await openNativeSession(model, { optimization });
    const expected = session.run(feeds);
    using binding = session.bind();
    const past = feeds.get("past");
    if (past === undefined) throw new Error("not an operator of ours");
    const state = memoryOf(past);
    for (const [name, tensor] of feeds) binding.input(name, name === "past" ? state : memoryOf(tensor));
    const memories = parts.map((name) => {
      const tensor = expected.get(name);
      if (tensor === undefined) throw new Error(`no output ${name}`);
      const memory: Memory = { dtype: tensor.dtype, shape: tensor.shape, bytes: allocate(tensor.byteLength) };
      binding.output(name, memory);
      return memory;
    });
    binding.output("present", state);
    binding.run();
    memories.forEach(({ bytes }, at) => {
      expect(bytes).toEqual(expected.get(parts[at] ?? "")?.bytes());
    });
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
        const sizes = { batch: 2, channels: 6, length, kernelSize: 4, stateWidth: 4 };
        const { model, feeds, parts } = convCase(spec.layout, spec.activation, sizes, length);
        await check(model, feeds, parts);
      }
    }
  });
});
