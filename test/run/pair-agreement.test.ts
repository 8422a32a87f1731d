import { expect, test } from "vitest";
import { pairDisagreement } from "../../src/run/pair-agreement.js";
import { fixture } from "../support/fixture-models.js";

const [MAMBA2, BAMBA] = ["mamba2", "bamba"].map((name) => fixture(`hf/${name}/prefill.onnx`));

async function apart(
  prefill: string,
  decode: string,
): Promise<{ readonly apart: number | null; readonly told: string[] }> {
  const told: string[] = [];
  const options = { vocabulary: 96, length: 16, dims: { s41: 4, s65: 4 }, onNotice: (text: string) => told.push(text) };
  return { apart: await pairDisagreement(prefill, decode, options), told };
}

test("a decode graph with states is fed token by token", async () => {
  const { apart: found, told } = await apart(MAMBA2 ?? "", fixture("hf/mamba2/decode.onnx"));
  expect(told).toEqual([]);
  expect(found).toBeGreaterThan(0);
  expect(found).toBeLessThan(1e-4);
});

test("one without states takes whole sequences", async () => {
  expect(await apart(MAMBA2 ?? "", MAMBA2 ?? "")).toEqual({ apart: 0, told: [] });
  const { apart: found, told } = await apart(MAMBA2 ?? "", BAMBA ?? "");
  expect(told).toEqual([]);
  expect(found).toBeGreaterThan(0.1);
});
