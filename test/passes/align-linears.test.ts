import { describe, expect, test } from "vitest";
import { alignLinears } from "../../passes/align-linears.js";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { attr, type Model } from "../../src/ir/graph.js";
import { concrete } from "../../src/rewrite/axes.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { linearsOf } from "../support/exact-steps.js";
import { flipped, fold, foldSample, spoiled } from "../support/fold-runs.js";
import { modelAround, normalWeight } from "../support/mamba-graphs/decoys.js";
import { expectSame, expectSettled, expectTold, forMost, golden, runPass } from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const MAMBA1: RaisedSpelling = { ...PLAIN, family: "mamba1" };

describe("align-linears", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, RaisedSpelling])[] = [
      [
        "left-and-tied",
        "A weight on the left of dt; a head that is the table.",
        { ...MAMBA1, dtLeft: true, head: "tied" },
      ],
      ["flat-gemm", "Projections of flattened activations, scaled.", { ...PLAIN, projection: "gemm-scaled" }],
      ["shared", "One weight for two projections.", { ...PLAIN, mlp: "after", sharedWeight: true }],
    ];
    for (const [name, about, spelling] of cases) {
      test(name, async () => {
        const { model } = await foldSample(spelling);
        const text = golden(about, model, await runPass(alignLinears, model, {}));
        await expect(text).toMatchFileSnapshot(`align-linears/${name}.irtxt`);
      });
    }
  });

  test("every projection gets the one form and computes the same", async () => {
    await forMost(arbitraryRaised(), 24, async (spelling) => {
      const sample = await foldSample(spelling);
      const outcome = await fold(sample, alignLinears, {});
      await expectSame(sample, outcome.model);
      expectAligned(outcome.model);
      expect(outcome.remarks).toEqual([]);
      return outcome.changed > 0;
    });
  });

  test("a second run changes nothing", async () => {
    for (const projection of ["gemm", "gemm-scaled", "gemm-transposed", "transposed"] as const) {
      const { model } = await foldSample({ ...MAMBA1, projection, dtLeft: true, head: "tied", mlp: "parallel" });
      const once = await runPass(alignLinears, model, {});
      expect(once.changed).toBeGreaterThan(0);
      await expectSettled(alignLinears, model, once.model, {});
      expect((await runPass(alignLinears, once.model, {})).changed).toBe(0);
    }
  });

  test("a tied head gets a weight of its own, and the table stays", async () => {
    const { model } = await foldSample({ ...PLAIN, head: "tied" });
    const { model: after } = await runPass(alignLinears, model, {});
    const head = linearsOf(after).find(({ role }) => role === "lm_head");
    expect(after.graph.initializers.get("embedding.weight")).toBe(model.graph.initializers.get("embedding.weight"));
    expect(head?.weight).not.toBe("embedding.weight");
    expect(after.graph.initializers.get(head?.weight ?? "")?.shape).toEqual([12, 17]);
  });

  test("what has no such form stays, with a remark", async () => {
    const b = new GraphBuilder("");
    const x = b.op("Reshape", [
      b.op("Gather", [normalWeight(b, "table", [11, 6]), "input_ids"], { axis: 0 }),
      b.ints([-1, 6]),
    ]);
    const weight = normalWeight(b, "weight", [6, 4]);
    const bias = b.op("ReduceMean", [x, b.ints([-1])], { keepdims: 1 });
    b.op("Gemm", [x, weight, bias], { beta: attr.float(0.5) }, "logits");
    const deep = b.op("Unsqueeze", [b.op("Unsqueeze", [x, b.ints([0])]), b.ints([3])]);
    b.op("MatMul", [normalWeight(b, "left", [3, 6]), deep], {}, "deep");
    const model = modelAround(
      b.graph(
        "stays",
        [typed("input_ids", "i64", ["b", "l"])],
        [typed("logits", "f32", [null, 4]), typed("deep", "f32", [null, null, 3, 1])],
      ),
    );
    const outcome = await runPass(alignLinears, model, {});
    expect(outcome.changed).toBe(0);
    expect(outcome.model).toBe(model);
    expect(outcome.remarks.map(({ code, message }) => `${code}: ${message}`)).toEqual([
      "align-linears/form: a Gemm with a factor on a bias that is no weight",
      "align-linears/form: a weight on the left of what is not [B, K, L]",
    ]);
  });

  describe("a wrong alignment is noticed", () => {
    const wrongs: Readonly<Record<string, readonly [Partial<RaisedSpelling>, (model: Model) => Model]>> = {
      "a transposition left out": [
        { projection: "gemm-transposed" },
        (model) => spoiled(model, /out_proj\.weight\.aligned/, (values) => flipped(values, 12)),
      ],
      "a factor left out": [
        { projection: "gemm-scaled" },
        (model) => spoiled(model, /out_proj\.weight\.aligned/, (values) => values.map((value) => value / 0.5)),
      ],
      "a bias left out": [
        { projection: "gemm-transposed" },
        (model) => spoiled(model, /out_proj\.bias/, (values) => values.map(() => 0)),
      ],
      "a head transposed in its shape only": [
        { head: "tied" },
        (model) => spoiled(model, /folded$/, (values) => flipped(values, 12, 17)),
      ],
    };
    for (const [label, [changes, make]] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await foldSample({ ...PLAIN, ...changes });
        const outcome = await fold(sample, alignLinears, {});
        await expectSame(sample, outcome.model);
        await expectTold(sample, make(outcome.model), label);
      });
    }
  });
});

/** One MatMul a projection, weight on the right and its own, activations not flattened. */
function expectAligned(model: Model): void {
  const sites = sitesOf(model);
  expect(sites.linears.length).toBeGreaterThan(0);
  for (const site of sites.linears) {
    expect([site.node.op, site.weightSide, site.transposed]).toEqual(["MatMul", "right", false]);
    expect(sites.index.users.get(site.weight)).toEqual([site.node]);
    expect(concrete(sites.view, site.input)?.shape?.length).toBe(3);
  }
}
