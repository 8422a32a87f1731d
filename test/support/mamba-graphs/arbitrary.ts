/** Random sizes and spellings that go together. */

import fc from "fast-check";
import type { Family } from "../../../src/ops/names.js";
import { DEFAULT_SPELLING, type GraphForm, type MambaSizes, type Spelling } from "./spelling.js";

/** A model to build, and the sizes of a call to run it with. */
export interface MambaCase {
  readonly sizes: MambaSizes;
  readonly spelling: Spelling;
  readonly seed: number;
  readonly batch: number;
  readonly length: number;
}

/** Six different small numbers become the sizes. */
function sizesOf(family: Family): fc.Arbitrary<MambaSizes> {
  return fc
    .record({
      picks: fc.shuffledSubarray([2, 3, 4, 5, 6, 7, 9, 11], { minLength: 4, maxLength: 4 }),
      kernel: fc.integer({ min: 2, max: 5 }),
      groups: fc.integer({ min: 1, max: 3 }),
      perGroup: fc.integer({ min: 1, max: 3 }),
      channels: fc.integer({ min: 12, max: 17 }),
      layers: fc.integer({ min: 1, max: 2 }),
      chunk: fc.constantFrom(2, 3, 8, 13),
      vocabulary: fc.integer({ min: 19, max: 25 }),
    })
    .map(({ picks, kernel, groups, perGroup, channels, layers, chunk, vocabulary }) => {
      const [headDim = 1, dState = 1, dModel = 1, dtRank = 1] = picks;
      const shared = { vocabulary, dModel: dModel + 6, layers, dState, kernel, chunk };
      return family === "mamba1"
        ? { ...shared, heads: channels, headDim: 1, groups: 1, dtRank }
        : { ...shared, heads: groups * perGroup, headDim, groups, dtRank: 1 };
    });
}

const freely = {
  opset: fc.constantFrom(17, 18, 20, 21),
  numericNames: fc.boolean(),
  stateNames: fc.constantFrom("hf", "transformersjs", "mobius", "plain"),
  stateWidth: fc.constantFrom("k", "k-1"),
  zeros: fc.constantFrom("constant-of-shape", "expand", "constant"),
  decay: fc.constantFrom("folded", "neg-exp"),
  broadcastA: fc.constantFrom("no", "folded", "expand"),
  dtToChannels: fc.boolean(),
  softplus: fc.constantFrom("plain", "where", "log-exp", "log-add-exp", "stable"),
  clamp: fc.constantFrom("none", "none", "clip", "clip-zero-inf", "clip-low-inf", "max", "min"),
  dtBias: fc.constantFrom("add", "add", "gemm", "none"),
  dtLeft: fc.boolean(),
  innerNorms: fc.constantFrom("none", "learned", "weightless"),
  groupRepeat: fc.constantFrom("broadcast", "expand", "tile", "gather"),
  layout: fc.constantFrom("tokens-first", "channels-first"),
  inputTerm: fc.constantFrom("dt-b-first", "dt-x-first"),
  selector: fc.constantFrom("gather", "slice-squeeze", "split"),
  readout: fc.constantFrom("matmul", "mul-sum", "einsum"),
  precomputed: fc.boolean(),
  skip: fc.constantFrom("none", "head", "channel"),
  contraction: fc.constantFrom("einsum", "mul-sum", "minimal"),
  segments: fc.constantFrom("masked-cumsum", "difference"),
  padding: fc.constantFrom("dynamic", "static"),
  skipOnPadded: fc.boolean(),
  cumulated: fc.constantFrom("suffix", "reverse", "negated", "chunks"),
  tree: fc.constantFrom("odd-even", "doubling", "in-place"),
  carry: fc.constantFrom("sequence", "scatter", "stacked"),
  bodyFunction: fc.boolean(),
  scanAxes: fc.constantFrom("transpose", "attributes"),
  wrapped: fc.boolean(),
  conv: fc.constantFrom("pad-both", "pad-left", "pad-node"),
  stepConv: fc.constantFrom("conv", "sum"),
  convBias: fc.constantFrom("conv", "add", "none"),
  convActivation: fc.boolean(),
  gate: fc.constantFrom("silu", "silu", "none"),
  gateNorm: fc.constantFrom("none", "after", "after-grouped", "before", "layer-norm"),
  norm: fc.constantFrom("reciprocal", "div", "simplified"),
  projection: fc.constantFrom("matmul", "gemm", "transposed"),
  split: fc.constantFrom("split", "slice"),
  noise: fc.constantFrom(0, 0, 0.2),
  shareWeights: fc.boolean(),
  branch: fc.constantFrom("scan", "conv-and-scan", "mixer"),
  branchForgets: fc.boolean(),
  branchTest: fc.constantFrom("equal", "greater", "input"),
} satisfies { readonly [Key in keyof Spelling]?: fc.Arbitrary<Spelling[Key]> } & {
  readonly cumulated: fc.Arbitrary<Spelling["parallel"]>;
  readonly tree: fc.Arbitrary<Spelling["parallel"]>;
};

/** A random model of one family and form. */
export function arbitraryCase(family: Family, form: GraphForm): fc.Arbitrary<MambaCase> {
  return fc
    .record({
      sizes: sizesOf(family),
      free: fc.record(freely),
      seed: fc.nat(1_000_000),
      fixedBatch: fc.boolean(),
      fixedLength: fc.boolean(),
      batch: fc.integer({ min: 1, max: 3 }),
      length: fc.integer({ min: 2, max: 9 }),
      states: fc.constantFrom("none", "present", "both"),
      claims: fc.boolean(),
      long: fc.constantFrom("chunked", "loop", "scan"),
      fused: fc.boolean(),
    })
    .map(
      ({
        sizes,
        free: { cumulated, tree, ...free },
        seed,
        fixedBatch,
        fixedLength,
        batch,
        length: drawn,
        states,
        claims,
        long,
        fused,
      }) => {
        const perHead = form === "chunked" || form === "linear-attention" || form === "branches" || family === "mamba1";
        // A graph that gives its conv state cuts it from the tokens of the call, so there must be enough.
        // A tree over three tokens is no other than three steps.
        const length = form === "step" ? 1 : Math.max(drawn, sizes.kernel, form === "associative" ? 5 : 0);
        // A step that claims a free length must fail for others, as exported ones do.
        const windowed = free.stepConv === "sum" && free.stateWidth === "k-1" && !free.dtLeft;
        const failsForMore = free.selector !== "gather" && (family === "mamba2" || windowed);
        const parallel = form === "associative" ? tree : cumulated;
        const oneLength = form === "unrolled" || form === "associative" || (form === "cumsum" && parallel === "chunks");
        const spelling: Spelling = {
          ...DEFAULT_SPELLING,
          ...free,
          parallel,
          form,
          family,
          batch: fixedBatch ? batch : null,
          length:
            oneLength || (fixedLength && ["chunked", "loop", "scan", "cumsum"].includes(form))
              ? length
              : form === "step"
                ? 1
                : null,
          claimsFreeLength: claims && ((form === "step" && failsForMore) || (form === "unrolled" && states === "none")),
          states: form === "step" || form === "branches" ? "both" : states,
          ...(perHead ? { dtToChannels: false, broadcastA: "no" } : {}),
          // These forms put heads into one axis, so every head needs its own B and C.
          ...(perHead && family === "mamba2" && free.groupRepeat === "broadcast" ? { groupRepeat: "expand" } : {}),
          ...(form === "linear-attention" && fused ? { conv: "fused", stateWidth: "k-1" } : {}),
          branchLong: family === "mamba1" && long === "chunked" ? "loop" : long,
          // Functions cannot read the initialisers they need inside an If that is itself in a function.
          wrapped: free.wrapped && form !== "branches",
        };
        return { sizes, spelling, seed, batch, length };
      },
    );
}
