import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { argmax, checkSampling, type SamplingOptions, sampleToken } from "../../src/run/sampling.js";
import { Random } from "../../src/support/random.js";

const LOGITS: Float32Array = Float32Array.of(1, 3, 2, 3, -1);

/** Tokens that can come up, with their shares in many draws. */
function shares(logits: Float32Array, options: SamplingOptions, draws: number = 4000): Map<number, number> {
  const random = new Random(3);
  const out = new Map<number, number>();
  for (let i = 0; i < draws; i++) {
    const token = sampleToken(logits, options, random);
    out.set(token, (out.get(token) ?? 0) + 1 / draws);
  }
  return out;
}

const support = (options: SamplingOptions): number[] => [...shares(LOGITS, options).keys()].sort((a, b) => a - b);

describe("sampleToken", () => {
  it("takes the best token, the first of equals, when greedy", () => {
    expect(sampleToken(LOGITS, {}, new Random(0))).toBe(1);
    expect(sampleToken(LOGITS, { temperature: 0, topK: 3 }, new Random(0))).toBe(1);
  });

  it("samples with the probabilities of the softmax", () => {
    for (const temperature of [0.5, 1, 2]) {
      const weights = Array.from(LOGITS, (value) => Math.exp(value / temperature));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      const drawn = shares(LOGITS, { temperature });
      weights.forEach((weight, id) => {
        // Four standard deviations of a binomial share.
        const p = weight / total;
        expect(Math.abs((drawn.get(id) ?? 0) - p)).toBeLessThan(4 * Math.sqrt((p * (1 - p)) / 4000));
      });
    }
  });

  it("keeps exactly the k best, the lowest ids of equals", () => {
    expect(support({ temperature: 1, topK: 1 })).toEqual([1]);
    expect(support({ temperature: 1, topK: 2 })).toEqual([1, 3]);
    expect(support({ temperature: 1, topK: 3 })).toEqual([1, 2, 3]);
    expect(support({ temperature: 1, topK: 100 })).toEqual([0, 1, 2, 3, 4]);
  });

  it("keeps the smallest set that reaches p", () => {
    // Probabilities: 0.054, 0.397, 0.146, 0.397, 0.007.
    expect(support({ temperature: 1, topP: 0.3 })).toEqual([1]);
    expect(support({ temperature: 1, topP: 0.5 })).toEqual([1, 3]);
    expect(support({ temperature: 1, topP: 0.9 })).toEqual([1, 2, 3]);
    expect(support({ temperature: 1, topP: 0.97 })).toEqual([0, 1, 2, 3]);
    expect(support({ temperature: 1, topP: 1e-9 })).toEqual([1]);
  });

  it("agrees with the plain definition of top-k then top-p", () => {
    const logits = fc.array(
      // Steps of 1/8, so that weights are equal exactly where logits are.
      fc.integer({ min: -48, max: 48 }).map((eighths) => eighths / 8),
      { minLength: 1, maxLength: 12 },
    );
    fc.assert(
      fc.property(logits, fc.integer({ min: 1, max: 12 }), fc.double({ min: 0.05, max: 1, noNaN: true }), (l, k, p) => {
        const row = Float32Array.from(l);
        const order = Array.from(row.keys()).sort((a, b) => (row[b] ?? 0) - (row[a] ?? 0) || a - b);
        const kept = order.slice(0, k);
        const weight = (id: number): number => Math.exp((row[id] ?? 0) - (row[order[0] ?? 0] ?? 0));
        const total = kept.reduce((sum, id) => sum + weight(id), 0);
        const allowed: number[] = [];
        for (const id of kept) {
          // A hair of slack: the order of a sum may decide what lies exactly on the edge.
          if (allowed.reduce((sum, other) => sum + weight(other), 0) >= p * total * (1 + 1e-12)) break;
          allowed.push(id);
        }
        const drawn = shares(row, { temperature: 1, topK: k, topP: p }, 60);
        for (const id of drawn.keys()) expect(allowed).toContain(id);
      }),
      { seed: 11, numRuns: 150 },
    );
  });

  it("repeats for one seed", () => {
    const draw = (seed: number): number[] => {
      const random = new Random(seed);
      return Array.from({ length: 50 }, () => sampleToken(LOGITS, { temperature: 1.5 }, random));
    };
    expect(draw(1)).toEqual(draw(1));
    expect(draw(1)).not.toEqual(draw(2));
  });

  it("stays finite for extreme logits", () => {
    const row = Float32Array.of(-3e38, 3e38, Number.NEGATIVE_INFINITY);
    expect(sampleToken(row, { temperature: 1 }, new Random(1))).toBe(1);
    expect(sampleToken(row, { temperature: 1e-3, topP: 0.5 }, new Random(1))).toBe(1);
  });

  it("refuses what is not a number, and options without a meaning", () => {
    expect(() => argmax(Float32Array.of(0, Number.NaN))).toThrow(/not a number/);
    for (const bad of [
      { temperature: -1 },
      { temperature: Number.NaN },
      { topK: 0 },
      { topK: 1.5 },
      { topP: 0 },
      { topP: 1.1 },
    ]) {
      expect(() => checkSampling(bad)).toThrow(expect.objectContaining({ code: "run/sampling" }));
    }
  });
});
