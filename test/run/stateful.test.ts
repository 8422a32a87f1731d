import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { toNumbers } from "../../src/ir/tensor.js";
import { logitsRow } from "../../src/run/logits.js";
import { loadPackage } from "../../src/run/stateful.js";
import type { LoadedPackage } from "../../src/run/stateful-model.js";
import { countLibrary, countModelFile, hasCompiler, scratchFolder } from "../support/count-model.js";
import { fixture } from "../support/fixture-models.js";
import { readNpz } from "../support/npz.js";

const BACKENDS = ["c-api", "node"] as const;

/** Kernel widths of the convolution caches, which these exports leave symbolic. */
const DIMS: Readonly<Record<string, number>> = { s41: 4, s65: 4, s85: 4, s64: 4, s98: 4, s6: 4 };

afterEach(() => {
  vi.unstubAllEnvs();
  vi.resetModules();
});

/** Token counts after a sequence: what the counting model must answer. */
function counts(tokens: readonly number[], vocabulary: number = 8): number[] {
  return Array.from({ length: vocabulary }, (_, id) => tokens.filter((token) => token === id).length);
}

describe.each(BACKENDS)("exported models through %s", (backend) => {
  it.each(["mamba", "mamba2", "jamba", "zamba2", "falcon_h1"])(
    "%s: stepping from zero state gives the logits of PyTorch",
    async (name) => {
      const io = readNpz(fixture(`hf/${name}/io.npz`));
      const numbers = (key: string): number[] => Array.from(toNumbers(io.get(key) ?? expect.fail(`no ${key}`)));
      const [ids, next] = [numbers("input_ids"), numbers("next_ids")];
      await using model = await loadPackage(fixture(`hf/${name}/decode.onnx`), { backend, batch: 2, dims: DIMS });
      expect(model.backend).toBe(backend);
      const prompt = await model.prefill([ids.slice(0, 24), ids.slice(24)]);
      expect([prompt.batch, prompt.length, prompt.vocabulary]).toEqual([2, 24, 96]);
      expect(largestDifference(prompt.data, numbers("logits"))).toBeLessThan(5e-6);
      const expected = numbers("logits_continued");
      for (let t = 0; t < 6; t++) {
        const logits = await model.step([next[t] ?? 0, next[6 + t] ?? 0]);
        for (const slot of [0, 1]) {
          const reference = expected.slice((slot * 6 + t) * 96, (slot * 6 + t + 1) * 96);
          expect(largestDifference(logitsRow(logits, slot), reference)).toBeLessThan(5e-6);
        }
      }
      expect(model.positions).toEqual([30, 30]);
    },
  );
});

function largestDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  let largest = 0;
  for (let i = 0; i < actual.length; i++) largest = Math.max(largest, Math.abs((actual[i] ?? 0) - (expected[i] ?? 0)));
  return largest;
}

type Action =
  | { readonly kind: "prefill"; readonly tokens: readonly number[] }
  | { readonly kind: "prefill-slot"; readonly slot: number; readonly tokens: readonly number[] }
  | { readonly kind: "step"; readonly tokens: readonly number[] }
  | { readonly kind: "reset"; readonly slot: number | undefined }
  | { readonly kind: "save"; readonly slot: number }
  | { readonly kind: "load"; readonly slot: number };

const token: fc.Arbitrary<number> = fc.nat(7);
const slot: fc.Arbitrary<number> = fc.nat(1);
const action: fc.Arbitrary<Action> = fc.oneof(
  fc.record({ kind: fc.constant("prefill" as const), tokens: fc.array(token, { minLength: 1, maxLength: 5 }) }),
  fc.record({
    kind: fc.constant("prefill-slot" as const),
    slot,
    tokens: fc.array(token, { minLength: 1, maxLength: 4 }),
  }),
  fc.record({ kind: fc.constant("step" as const), tokens: fc.tuple(token, token) }),
  fc.record({ kind: fc.constant("reset" as const), slot: fc.option(slot, { nil: undefined }) }),
  fc.record({ kind: fc.constant("save" as const), slot }),
  fc.record({ kind: fc.constant("load" as const), slot }),
);

/** Replays actions and compares every answer with histories kept here; `marker` is what a kernel adds to logits. */
async function replay(model: LoadedPackage, actions: readonly Action[], marker: number = 0): Promise<void> {
  const marked = (history: readonly number[] = []): number[] => counts(history).map((count) => count + marker);
  model.reset();
  const histories: number[][] = [[], []];
  let saved = { history: [] as number[], snapshot: model.snapshot(0) };
  for (const step of actions) {
    switch (step.kind) {
      case "prefill":
      case "prefill-slot": {
        const only = step.kind === "prefill" ? undefined : step.slot;
        const logits = await model.prefill(step.tokens, only);
        const slots = only === undefined ? [0, 1] : [only];
        for (const s of slots) histories[s]?.push(...step.tokens);
        slots.forEach((s, row) => expect(Array.from(logitsRow(logits, row))).toEqual(marked(histories[s])));
        break;
      }
      case "step": {
        const logits = await model.step(step.tokens);
        step.tokens.forEach((id, s) => {
          histories[s]?.push(id);
          expect(Array.from(logitsRow(logits, s))).toEqual(marked(histories[s]));
        });
        break;
      }
      case "reset":
        model.reset(step.slot);
        for (const s of step.slot === undefined ? [0, 1] : [step.slot]) histories[s] = [];
        break;
      case "save":
        saved = { history: [...(histories[step.slot] ?? [])], snapshot: model.snapshot(step.slot) };
        break;
      case "load":
        model.restore(saved.snapshot, step.slot);
        histories[step.slot] = [...saved.history];
        break;
      default:
        step satisfies never;
    }
    expect(model.positions).toEqual(histories.map((history) => history.length));
  }
}

describe.each(BACKENDS)("state through %s", (backend) => {
  it.each([
    ["a free length", "length" as const],
    ["one token a call", 1 as const],
  ])("any sequence of calls on slots is remembered, with %s", async (_, length) => {
    await using model = await loadPackage(countModelFile({ length }), { backend, batch: 2, library: "none" });
    await fc.assert(
      fc.asyncProperty(fc.array(action, { minLength: 1, maxLength: 12 }), (actions) => replay(model, actions)),
      { seed: 7, numRuns: 60 },
    );
  });

  it.each([["length" as const], [1 as const]])(
    "prefill may reuse the memory of its logits, at %s tokens",
    async (length) => {
      const own = await loadPackage(countModelFile({ length }), { backend, library: "none" });
      await using model = await loadPackage(countModelFile({ length }), {
        backend,
        library: "none",
        reuseLogits: true,
      });
      const prompts = [[1, 2, 1], [3, 1, 3], [2], [2, 2, 2, 2], [1, 1, 3]];
      const seen: Float32Array[] = [];
      for (const prompt of prompts) {
        const expected = await own.prefill(prompt);
        const { data } = await model.prefill(prompt);
        expect([...data]).toEqual([...expected.data]);
        seen.push(data);
      }
      await own.close();
      const [first, second, , , last] = seen;
      // One token a call: each of them is copied into the whole.
      const shared = length === "length";
      expect(first?.buffer === second?.buffer).toBe(shared);
      // Another length took its place.
      expect(last?.buffer === first?.buffer).toBe(false);
    },
  );

  it.skipIf(backend === "node" || !hasCompiler)("the same with a kernel that updates state in place", async () => {
    await using model = await loadPackage(countModelFile(), { backend, batch: 2, library: countLibrary() });
    expect(model.statesInPlace.size).toBe(1);
    await fc.assert(
      fc.asyncProperty(fc.array(action, { minLength: 1, maxLength: 12 }), (actions) => replay(model, actions, 2000)),
      { seed: 8, numRuns: 60 },
    );
  });

  it("restores a whole batch, growing attention caches included", async () => {
    await using model = await loadPackage(fixture("hf/jamba/decode.onnx"), { backend, batch: 2, dims: DIMS });
    await model.prefill([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    const snapshot = model.snapshot();
    const first = Array.from((await model.step([7, 8])).data);
    await model.step([9, 9]);
    model.restore(snapshot);
    expect(model.positions).toEqual([3, 3]);
    expect(Array.from((await model.step([7, 8])).data)).toEqual(first);
    model.reset();
    await model.prefill([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    expect(Array.from((await model.step([7, 8])).data)).toEqual(first);
    expect(() => model.reset(1)).toThrow(/attention layers keep all slots/);
  });
});

describe("a plain forward graph", () => {
  it("answers prefill and remembers nothing", async () => {
    await using model = await loadPackage(fixture("hf/mamba2/prefill.onnx"));
    expect(model.stateful).toBe(false);
    const first = await model.prefill([1, 2, 3]);
    expect([first.length, first.vocabulary]).toEqual([3, 96]);
    expect((await model.prefill([1, 2, 3])).data).toEqual(first.data);
    expect(model.positions).toEqual([0]);
    await expect(model.step(1)).rejects.toMatchObject({ code: "run/stateless" });
  });
});

describe("loadPackage", () => {
  it("falls back to onnxruntime-node, with the reason, when the C API cannot be loaded", async () => {
    vi.stubEnv("MAMBAC_ONNXRUNTIME", "/no/such/libonnxruntime.so");
    vi.resetModules();
    const fresh = await import("../../src/run/stateful.js");
    const notices: string[] = [];
    await using model = await fresh.loadPackage(countModelFile(), { onNotice: (text) => notices.push(text) });
    expect(model.backend).toBe("node");
    expect(notices).toEqual([expect.stringMatching(/onnxruntime-node, without the op library.*MAMBAC_ONNXRUNTIME/)]);
    expect(model.executedOps().functions.get("CountTokens")).toBe(1);
    expect((await model.step(2)).data[2]).toBe(1);
    await expect(fresh.loadPackage(countModelFile(), { backend: "c-api" })).rejects.toMatchObject({
      code: "ort/not-found",
    });
  });

  it("takes a folder with one model", async () => {
    const path = countModelFile();
    const empty = scratchFolder();
    await expect(loadPackage(empty)).rejects.toThrow(/holds no \.onnx file/);
    await expect(loadPackage(`${path}.missing`)).rejects.toMatchObject({ code: "run/model" });
    const { copyFileSync } = await import("node:fs");
    copyFileSync(path, `${empty}/a.onnx`);
    await using model = await loadPackage(empty);
    expect(model.modelPath).toBe(`${empty}/a.onnx`);
    copyFileSync(path, `${empty}/b.onnx`);
    await expect(loadPackage(empty)).rejects.toThrow(/2 \.onnx files and none named model\.onnx/);
    copyFileSync(path, `${empty}/model.onnx`);
    await using named = await loadPackage(empty);
    expect(named.modelPath).toBe(`${empty}/model.onnx`);
  });

  it("asks for lengths the graph does not tell", async () => {
    await expect(loadPackage(fixture("hf/mamba2/decode.onnx"))).rejects.toThrow(/dims: \{ "s41": \.\.\. \}/);
  });

  it("refuses batches the graph cannot run", async () => {
    await expect(loadPackage(countModelFile({ batch: 1 }), { batch: 2 })).rejects.toMatchObject({ code: "run/batch" });
    await expect(loadPackage(countModelFile(), { batch: 0 })).rejects.toMatchObject({ code: "run/batch" });
  });

  it("refuses calls that do not fit", async () => {
    await using model = await loadPackage(countModelFile(), { batch: 2 });
    await expect(model.prefill([])).rejects.toMatchObject({ code: "run/tokens" });
    await expect(model.prefill([[1], [2, 3]])).rejects.toThrow(/one length/);
    await expect(model.step([1, 2, 3])).rejects.toMatchObject({ code: "run/tokens" });
    await expect(model.prefill([1], 2)).rejects.toMatchObject({ code: "run/slot" });
    await using other = await loadPackage(countModelFile({ vocabulary: 9 }), { batch: 2 });
    expect(() => model.restore(other.snapshot())).toThrow(/does not fit/);
    expect(() => model.restore(model.snapshot(0))).toThrow(/holds 1 slots, not 2/);
    await using fixed = await loadPackage(countModelFile({ length: 3 }));
    await expect(fixed.prefill([1, 2])).rejects.toThrow(/exactly 3 tokens a call, not 2/);
  });

  it("refuses a second call while one is running", async () => {
    await using model = await loadPackage(countModelFile(), { backend: "node" });
    const [first, second] = await Promise.allSettled([model.step(1), model.step(2)]);
    expect(first.status).toBe("fulfilled");
    expect(second).toMatchObject({ status: "rejected", reason: { code: "run/busy" } });
  });

  it("accepts bytes as tokens", async () => {
    await using model = await loadPackage(countModelFile({ vocabulary: 256 }));
    const logits = await model.prefill(new TextEncoder().encode("abca"));
    expect(logitsRow(logits)[97]).toBe(2);
  });
});
