import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { f32Tensor } from "../../src/ir/tensor.js";
import { type SelectiveScanArguments, selectiveScanReference } from "../../src/ops/reference.js";
import { Sampler } from "../../src/rewrite/sampler.js";
import { PROOF_TOLERANCE, relativeError } from "../../src/rewrite/scan-proof.js";
import { failsInSample } from "../../src/rewrite/scan-sample.js";

const sizes = fc.record({
  family: fc.constantFrom("mamba1" as const, "mamba2" as const),
  batch: fc.integer({ min: 1, max: 3 }),
  length: fc.integer({ min: 1, max: 4 }),
  groups: fc.constantFrom(1, 2),
  perGroup: fc.integer({ min: 1, max: 3 }),
  headDim: fc.integer({ min: 1, max: 4 }),
  dState: fc.integer({ min: 1, max: 5 }),
  seed: fc.nat(),
});

type Case = typeof sizes extends fc.Arbitrary<infer T> ? T : never;

function scan({ family, batch, length, groups, perGroup, headDim, dState, seed }: Case): SelectiveScanArguments {
  const sampler = new Sampler(`sample ${seed}`);
  const heads = groups * perGroup;
  const rows = family === "mamba2" ? heads * headDim : heads;
  const shared = {
    batch,
    length,
    dState,
    groups,
    x: sampler.normal(batch * length * rows),
    dt: sampler.normal(batch * length * heads),
    A: sampler.normal(family === "mamba2" ? heads : heads * dState).map((v) => -Math.exp(v)),
    B: sampler.normal(batch * length * groups * dState),
    C: sampler.normal(batch * length * groups * dState),
    D: seed % 2 === 0 ? sampler.normal(rows) : null,
    dtBias: seed % 3 === 0 ? sampler.normal(heads) : null,
    past: seed % 5 === 0 ? null : sampler.normal(batch * rows * dState),
  };
  return family === "mamba2"
    ? { ...shared, family, headDim, heads }
    : { ...shared, family, headDim: 1, channels: heads };
}

/** State as a graph would give it: float32, [H, P, N] or [H, N, P]. */
function stored(args: SelectiveScanArguments, state: Float64Array, layout: "PN" | "NP"): ReturnType<typeof f32Tensor> {
  const { headDim, dState } = args;
  const wide = headDim * dState;
  const from = (at: number): number => {
    if (layout === "PN") return at;
    const inHead = at % wide;
    return at - inHead + (inHead % headDim) * dState + Math.floor(inHead / headDim);
  };
  return f32Tensor(
    [state.length],
    Float32Array.from(state, (_, at) => state[from(at)] ?? 0),
  );
}

describe("failsInSample", () => {
  it("never fails what agrees, in either layout of the state", () => {
    fc.assert(
      fc.property(sizes, fc.constantFrom("PN" as const, "NP" as const), (drawn, layout) => {
        const args = scan(drawn);
        const result = selectiveScanReference(args);
        expect(
          failsInSample(args, new Float64Array(new Float32Array(result.y)), stored(args, result.state, layout), layout),
        ).toBe(false);
        expect(failsInSample(args, result.y, null, layout)).toBe(false);
      }),
      { seed: 1, numRuns: 200 },
    );
  });

  it("fails only what the whole comparison fails, near the tolerance too", () => {
    let caught = 0;
    const scale = fc.constantFrom(0.5e-4, 0.9e-4, 1.1e-4, 1.9e-4, 2.1e-4, 1e-2);
    fc.assert(
      fc.property(sizes, scale, fc.boolean(), (drawn, share, inState) => {
        const args = scan(drawn);
        const truth = selectiveScanReference(args);
        const spoiled = (values: Float64Array): Float64Array => {
          const peak = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
          return values.map((value, at) => (at % 3 === 0 ? value + share * peak : value));
        };
        const y = inState ? truth.y : spoiled(truth.y);
        const state = stored(args, inState ? spoiled(truth.state) : truth.state, "PN");
        const error = Math.max(
          relativeError(y, truth.y),
          relativeError(new Float32Array(state.bytes().slice().buffer), truth.state),
        );
        const failed = failsInSample(args, y, state, "PN");
        if (failed) caught += 1;
        expect(failed && error <= PROOF_TOLERANCE).toBe(false);
      }),
      { seed: 2, numRuns: 300 },
    );
    expect(caught).toBeGreaterThan(50);
  });

  it("sees that B and C are exchanged", () => {
    const args = scan({
      family: "mamba2",
      batch: 2,
      length: 2,
      groups: 2,
      perGroup: 2,
      headDim: 3,
      dState: 4,
      seed: 1,
    });
    const { y, state } = selectiveScanReference(args);
    expect(failsInSample({ ...args, B: args.C, C: args.B }, y, stored(args, state, "PN"), "PN")).toBe(true);
  });
});
