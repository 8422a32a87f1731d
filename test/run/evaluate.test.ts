import { describe, expect, it } from "vitest";
import { evaluate } from "../../src/run/evaluate.js";
import { RecordedLogits } from "../../src/run/recorded-logits.js";
import { loadPackage } from "../../src/run/stateful.js";
import { hubTokenizer } from "../../src/run/tokenizer.js";
import { Random } from "../../src/support/random.js";
import { countModelFile } from "../support/count-model.js";
import { fixture } from "../support/fixture-models.js";

const DIMS: Readonly<Record<string, number>> = { s41: 4, s65: 4 };

function randomIds(count: number, below: number, seed: number): number[] {
  const random = new Random(seed);
  return Array.from({ length: count }, () => random.integer(below));
}

/** The protocol by hand, for the counting model: probabilities are softmax of counts within the window. */
function expectedBits(ids: readonly number[], window: number, windows: number, vocabulary: number): number[] {
  return Array.from({ length: windows }, (_, w) => {
    const counts = new Float64Array(vocabulary);
    let bits = 0;
    for (let t = w * window; t < (w + 1) * window; t++) {
      counts[ids[t] ?? 0]! += 1;
      const total = counts.reduce((sum, count) => sum + Math.exp(count), 0);
      bits -= Math.log2(Math.exp(counts[ids[t + 1] ?? 0]!) / total);
    }
    return bits / window;
  });
}

describe("evaluate", () => {
  it.each(["token", "call"] as const)(
    "scores the protocol's predictions, mode %s, whatever the batch",
    async (mode) => {
      const ids = randomIds(5 * 7 + 1, 8, 1);
      const expected = expectedBits(ids, 7, 5, 8);
      for (const batch of [1, 2, 5]) {
        await using model = await loadPackage(countModelFile(), { batch });
        await model.prefill([3, 3, 3]);
        const shares: number[] = [];
        const result = await evaluate({
          model,
          text: ids,
          window: 7,
          windows: 5,
          mode,
          onProgress: (s) => shares.push(s),
        });
        result.windowBits.forEach((bits, w) => expect(bits).toBeCloseTo(expected[w] ?? 0, 6));
        const mean = expected.reduce((sum, bits) => sum + bits, 0) / 5;
        expect(result.bitsPerToken).toBeCloseTo(mean, 6);
        expect(result.perplexity).toBeCloseTo(2 ** mean, 5);
        expect(result).toMatchObject({ mode, window: 7, windows: 5, predictions: 35, bitsPerByte: null, nonFinite: 0 });
        expect(shares.at(-1)).toBe(1);
        expect(model.positions.every((position) => position === 0)).toBe(true);
      }
    },
  );

  it("gives the same figures against logits that were recorded", async () => {
    const ids = randomIds(5 * 9 + 1, 32, 4);
    const options = { text: ids, window: 9, windows: 5, mode: "call" } as const;
    await using model = await loadPackage(fixture("hf/mamba2/prefill.onnx"), { batch: 2 });
    await using reference = await loadPackage(fixture("hf/bamba/prefill.onnx"), { batch: 2, dims: DIMS });
    const recorded = new RecordedLogits(5, 9);
    const itself = await evaluate({ model: reference, reference: recorded, record: recorded, ...options });
    expect(itself.comparison).toMatchObject({ meanKlBits: 0, maxKlBits: 0, top1Agreement: 1 });
    expect(itself.comparison?.referenceBitsPerToken).toBeCloseTo(itself.bitsPerToken, 12);
    const run = await evaluate({ model, reference, ...options });
    expect(run.comparison?.meanKlBits).toBeGreaterThan(1e-3);
    expect(await evaluate({ model, reference: recorded, ...options })).toEqual(run);
    // What is recorded does not depend on how many windows run together.
    await using alone = await loadPackage(fixture("hf/mamba2/prefill.onnx"), { batch: 5 });
    expect((await evaluate({ model: alone, reference: recorded, ...options })).comparison?.meanKlBits).toBeCloseTo(
      run.comparison?.meanKlBits ?? 0,
      6,
    );
  });

  it("tells the same figures by position, and takes passages for windows", async () => {
    const ids = randomIds(3 * 40 + 1, 8, 9);
    await using model = await loadPackage(countModelFile(), { batch: 3 });
    await using reference = await loadPackage(countModelFile(), { batch: 3 });
    const whole = await evaluate({ model, reference, text: ids, window: 40, windows: 3, mode: "call" });
    expect(whole.positions.map(({ from, to }) => [from, to])).toEqual([
      [0, 16],
      [16, 32],
      [32, 40],
    ]);
    const weighted = whole.positions.reduce((sum, { from, to, bitsPerToken }) => sum + (to - from) * bitsPerToken, 0);
    expect(weighted / 40).toBeCloseTo(whole.bitsPerToken, 10);
    for (const { meanKlBits } of whole.positions) expect(meanKlBits).toBeLessThan(1e-9);
    // Counts grow, so the model gets surer of itself along the window.
    expect(whole.positions[2]?.bitsPerToken).not.toBeCloseTo(whole.positions[0]?.bitsPerToken ?? 0, 1);
    const sequences = [0, 1, 2].map((at) => Int32Array.from(ids.slice(at * 40, (at + 1) * 40 + 1)));
    const passages = await evaluate({ model, text: { sequences }, mode: "token" });
    expect(passages).toMatchObject({ window: 40, windows: 3, bitsPerByte: null });
    expect(passages.bitsPerToken).toBeCloseTo(whole.bitsPerToken, 6);
    expect(passages.positions.every(({ meanKlBits }) => meanKlBits === null)).toBe(true);
    const text = {
      sequences: [
        [1, 2, 3],
        [1, 2],
      ],
    };
    await expect(evaluate({ model, text })).rejects.toMatchObject({ code: "evaluate/text" });
  });

  it("counts bytes, not tokens, for bits per byte", async () => {
    const text = "abababababababababab+";
    await using bytes = await loadPackage(countModelFile({ vocabulary: 256 }));
    const plain = await evaluate({ model: bytes, text, window: 10, windows: 2, mode: "call" });
    expect(plain.bitsPerByte).toBe(plain.bitsPerToken);
    expect(await evaluate({ model: bytes, text: new TextEncoder().encode(text), window: 10, windows: 2 })).toEqual({
      ...plain,
      mode: "token",
    });
    const pairs = hubTokenizer(
      {
        version: "1.0",
        added_tokens: [],
        normalizer: null,
        pre_tokenizer: null,
        post_processor: null,
        decoder: { type: "Fuse" },
        model: { type: "BPE", vocab: { a: 0, b: 1, ab: 2, "+": 3 }, merges: ["a b"], unk_token: null },
      },
      {},
    );
    await using model = await loadPackage(countModelFile());
    const merged = await evaluate({ model, text, tokenizer: pairs, window: 5, windows: 2, mode: "call" });
    // Ten predictions: nine times "ab" and once "+".
    expect(merged.predictions).toBe(10);
    expect(merged.bitsPerByte).toBeCloseTo((merged.bitsPerToken * 10) / 19, 12);
  });

  it("finds an exported pair equal to itself: decode steps against the prefill graph", async () => {
    await using model = await loadPackage(fixture("hf/mamba2/decode.onnx"), { batch: 3, dims: DIMS });
    await using reference = await loadPackage(fixture("hf/mamba2/prefill.onnx"), { batch: 3 });
    const text = randomIds(3 * 24 + 1, 96, 2);
    const result = await evaluate({ model, reference, text, window: 24, windows: 3 });
    expect(result.comparison?.top1Agreement).toBe(1);
    expect(result.comparison?.maxKlBits).toBeLessThan(1e-9);
    expect(result.comparison?.referenceBitsPerToken).toBeCloseTo(result.bitsPerToken, 5);
    const call = await evaluate({ model: reference, text, window: 24, windows: 3, mode: "call" });
    expect(call.bitsPerToken).toBeCloseTo(result.bitsPerToken, 5);
  });

  it("measures how far two models are apart", async () => {
    await using model = await loadPackage(fixture("hf/mamba2/prefill.onnx"), { batch: 2 });
    await using reference = await loadPackage(fixture("hf/bamba/prefill.onnx"), { batch: 2 });
    const text = randomIds(2 * 16 + 1, 96, 3);
    const options = { text, window: 16, windows: 2, mode: "call" as const };
    const forward = await evaluate({ model, reference, ...options });
    const backward = await evaluate({ model: reference, reference: model, ...options });
    const alone = await evaluate({ model: reference, ...options });
    expect(alone.comparison).toBeNull();
    expect(forward.comparison?.referenceBitsPerToken).toBeCloseTo(alone.bitsPerToken, 12);
    expect(forward.comparison?.top1Agreement).toBe(backward.comparison?.top1Agreement);
    const kl = forward.comparison?.meanKlBits ?? 0;
    expect(kl).toBeGreaterThan(0);
    expect(backward.comparison?.meanKlBits).not.toBe(kl);
    expect(forward.comparison?.p99KlBits).toBeLessThanOrEqual(forward.comparison?.maxKlBits ?? 0);
    expect(kl).toBeLessThan(forward.comparison?.maxKlBits ?? 0);
  });

  it("refuses texts, windows and models that do not fit", async () => {
    await using model = await loadPackage(countModelFile());
    const text = randomIds(20, 8, 4);
    await expect(evaluate({ model, text, window: 10, windows: 2 })).rejects.toThrow(/has 20 tokens.*need 21/);
    await expect(evaluate({ model, text, window: 0 })).rejects.toMatchObject({ code: "evaluate/window" });
    await expect(evaluate({ model, text: "zzzz", window: 2, windows: 1 })).rejects.toThrow(/token 122.*knows 8/);
    await using wide = await loadPackage(countModelFile(), { batch: 2 });
    await expect(evaluate({ model, reference: wide, text, window: 2, windows: 1 })).rejects.toMatchObject({
      code: "evaluate/batch",
    });
    await using other = await loadPackage(countModelFile({ vocabulary: 9 }));
    await expect(evaluate({ model, reference: other, text, window: 2, windows: 1 })).rejects.toMatchObject({
      code: "evaluate/vocabulary",
    });
  });
});
