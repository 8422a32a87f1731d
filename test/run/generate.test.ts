import { describe, expect, it } from "vitest";
import { type GenerateOptions, generate, generateBatch } from "../../src/run/generate.js";
import { loadPackage } from "../../src/run/stateful.js";
import { countModelFile } from "../support/count-model.js";
import { fixture } from "../support/fixture-models.js";

const MODEL: string = countModelFile();

async function once(prompt: readonly number[], options: GenerateOptions): Promise<readonly number[]> {
  await using model = await loadPackage(MODEL);
  return (await generate(model, prompt, options)).tokens;
}

describe("generate", () => {
  it("continues greedily with what it has seen most often", async () => {
    expect(await once([4, 2, 2], { maxTokens: 4 })).toEqual([2, 2, 2, 2]);
  });

  it("streams every token as it comes, and ends at a stop token without giving it", async () => {
    await using model = await loadPackage(MODEL);
    const seen: number[] = [];
    const options: GenerateOptions = { maxTokens: 50, temperature: 1, seed: 4, onToken: (id) => seen.push(id) };
    const free = await generate(model, [1, 2, 3, 4, 5], options);
    expect(free.end).toBe("length");
    expect(seen).toEqual(free.tokens);
    expect(seen).toHaveLength(50);
    const stop = seen[20] ?? 0;
    model.reset();
    const stopped = await generate(model, [1, 2, 3, 4, 5], { ...options, stopTokens: [stop] });
    expect(stopped.end).toBe("stop");
    expect(stopped.tokens).toEqual(free.tokens.slice(0, free.tokens.indexOf(stop)));
  });

  it("repeats for one seed and not for another", async () => {
    const options = { maxTokens: 30, temperature: 2 };
    const first = await once([1, 2, 3], { ...options, seed: 1 });
    expect(await once([1, 2, 3], { ...options, seed: 1 })).toEqual(first);
    expect(await once([1, 2, 3], { ...options, seed: 2 })).not.toEqual(first);
  });

  it("stops when aborted", async () => {
    await using model = await loadPackage(MODEL);
    const controller = new AbortController();
    let count = 0;
    const result = await generate(model, [1], {
      maxTokens: 100,
      signal: controller.signal,
      onToken: () => {
        count += 1;
        if (count === 3) controller.abort();
      },
    });
    expect(result).toEqual({ tokens: [1, 1, 1], end: "aborted" });
  });

  it("continues from the present state, so a conversation can go on", async () => {
    await using model = await loadPackage(MODEL);
    await generate(model, [5, 5, 5, 5], { maxTokens: 1 });
    expect((await generate(model, [2, 2], { maxTokens: 1 })).tokens).toEqual([5]);
  });

  it("refuses what cannot work", async () => {
    await using wide = await loadPackage(MODEL, { batch: 2 });
    await expect(generate(wide, [1], { maxTokens: 1 })).rejects.toMatchObject({ code: "run/batch" });
    await expect(generateBatch(wide, [[1]], { maxTokens: 1 })).rejects.toMatchObject({ code: "run/batch" });
    await expect(generateBatch(wide, [[1], [2]], { maxTokens: 0 })).rejects.toMatchObject({ code: "run/generate" });
    await using forward = await loadPackage(fixture("hf/mamba2/prefill.onnx"));
    await expect(generate(forward, [1], { maxTokens: 1 })).rejects.toMatchObject({ code: "run/stateless" });
  });
});

describe("generateBatch", () => {
  it("gives each slot what a run with the same slot number alone would give", async () => {
    const options = { maxTokens: 12, temperature: 1, topK: 5, seed: 9 };
    const prompts = [[1, 2, 3], [7], [4, 4, 5, 6]];
    await using model = await loadPackage(MODEL, { batch: 3 });
    const together = await generateBatch(model, prompts, options);
    model.reset();
    const others = await generateBatch(model, [[0], [7], [0, 1]], options);
    expect(others[1]).toEqual(together[1]);
    expect(others[0]).not.toEqual(together[0]);
    expect(together[0]?.tokens).toEqual(await once([1, 2, 3], options));
  });

  it("lets slots end at different times", async () => {
    await using model = await loadPackage(MODEL, { batch: 2 });
    const results = await generateBatch(model, [[3], [6]], { maxTokens: 5, stopTokens: [3] });
    expect(results).toEqual([
      { tokens: [], end: "stop" },
      { tokens: [6, 6, 6, 6, 6], end: "length" },
    ]);
  });
});
