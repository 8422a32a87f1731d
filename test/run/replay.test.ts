/** Replay states in a loaded model: sequences of a batch that are rounded at different tokens, snapshots, and evaluation. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { evaluate } from "../../src/run/evaluate.js";
import { generate } from "../../src/run/generate.js";
import { logitsRow } from "../../src/run/logits.js";
import { type LoadedPackage, loadPackage } from "../../src/run/stateful.js";
import { byteTokenizer } from "../../src/run/tokenizer.js";
import { compileWith } from "../support/fixture-row.js";
import { DEMO } from "../support/state-quality.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-replay-"));
const file = join(folder, "replay.onnx");
const R = 4;
const TEXT = readFileSync(join(DEMO, "kjv.txt"));

beforeAll(async () => {
  const state = { format: "h4", scale: "dsq-max", requantize: "replay", replayLength: R } as const;
  await compileWith([join(DEMO, "prefill.onnx")], file, state);
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Logits may differ by what a code at a tie changes, and do so rarely: those of another text differ by several. */
const SAME = 0.05;

function apart(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < expected.length; i++) sum += ((actual[i] ?? Number.NaN) - (expected[i] ?? 0)) ** 2;
  return Math.sqrt(sum / expected.length);
}

/** The logits after each token of a text, one token a call. */
async function stepped(model: LoadedPackage, text: Uint8Array): Promise<Float32Array[]> {
  model.reset();
  const out: Float32Array[] = [];
  for (const token of text) out.push(logitsRow(await model.step(token), 0).slice());
  return out;
}

describe.each(["c-api", "node"] as const)("through %s", (backend) => {
  test("slots of one batch are rounded each at its own tokens", async () => {
    await using alone = await loadPackage(file, { batch: 1, backend, library: "none" });
    await using model = await loadPackage(file, { batch: 3, backend, library: "none" });
    const texts = [0, 1, 2].map((slot) => TEXT.subarray(100 * slot, 100 * slot + 20 + slot));
    const wanted: Float32Array[][] = [];
    for (const text of texts) wanted.push(await stepped(alone, text));
    // Prompts of 5, 6 and 7 tokens: counts 1, 2 and 3 when stepping begins.
    for (const [slot, text] of texts.entries()) await model.prefill(text.subarray(0, 5 + slot), slot);
    for (let t = 0; t < 12; t++) {
      const logits = await model.step(texts.map((text, slot) => text[5 + slot + t] ?? 0));
      for (const slot of [0, 1, 2]) {
        expect(apart(logitsRow(logits, slot), wanted[slot]?.[5 + slot + t] ?? [])).toBeLessThan(SAME);
      }
    }
    expect(apart(wanted[0]?.[10] ?? [], wanted[1]?.[10] ?? [])).toBeGreaterThan(10 * SAME);
  });

  test("a snapshot between two roundings goes on in any slot", async () => {
    await using model = await loadPackage(file, { batch: 2, backend, library: "none" });
    const text = TEXT.subarray(0, 30);
    await model.prefill(text.subarray(0, 10), 1);
    const snapshot = model.snapshot(1);
    await model.prefill(text.subarray(10, 13), 1);
    const first = logitsRow(await model.step([0, text[13] ?? 0]), 1).slice();
    model.restore(snapshot, 0);
    await model.prefill(text.subarray(10, 13), 0);
    const second = logitsRow(await model.step([text[13] ?? 0, 0]), 0);
    expect([...second]).toEqual([...first]);
    model.reset(0);
    const fresh = logitsRow(await model.prefill(text.subarray(0, 1), 0), 0).slice();
    model.reset();
    expect([...logitsRow(await model.prefill(text.subarray(0, 1), 1), 0)]).toEqual([...fresh]);
  });
});

test("one call a window scores as one token a call", async () => {
  await using model = await loadPackage(file, { batch: 2, library: "none" });
  const score = async (mode: "token" | "call"): Promise<number> =>
    (await evaluate({ model, text: TEXT, windows: 2, window: 64, mode })).bitsPerToken;
  expect(Math.abs((await score("call")) / (await score("token")) - 1)).toBeLessThan(1e-3);
});

test("generates", async () => {
  await using model = await loadPackage(file, { batch: 1, library: "none" });
  const { tokens } = await generate(model, byteTokenizer.encode("And it came to pass"), { maxTokens: 20 });
  expect(byteTokenizer.decode(tokens)).toMatch(/^[\x20-\x7e\n]{20}$/);
});
