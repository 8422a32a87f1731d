/**
 * round-tanh: rounds the weights of projections to 8 bits on a tanh curve: fine steps near the mean, coarse ones far out.
 * Experimental; for comparison with the published figures.
 *
 * Source: the reference code of PTQ-SSM (no paper backs it). Algebra: t = tanh((clamp(W, mu +- 3 sigma) - mu) / sigma),
 * q = round(127 t / max|t|), W^ = sigma atanh(clamp(q max|t| / 127, +-0.99)) + mu. What lies further than 2.65 sigma from
 * the mean is lost. Constant weights have no curve; they get plain 8 bits.
 * The curve is no DequantizeLinear, so the file holds u8 codes and a table of 256 values; runtimes multiply in float.
 * Refuses: weights with NaN or infinity (exit 5).
 *
 *     before   MatMul(x, W f32[K, N])
 *     after    MatMul(x, Gather(table f32[256], Cast(codes u8[K, N])))
 */

import { attr, makeNode } from "../src/ir/graph.js";
import { f32Tensor, tensorFromBytes } from "../src/ir/tensor.js";
import { roundTanh as roundWeight } from "../src/quant/round-tanh.js";
import { parseWeightScheme } from "../src/quant/scheme.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { replaceWeight } from "../src/rewrite/rounded-weight.js";
import { type LinearSite, sitesOf } from "../src/rewrite/sites.js";
import { weightValues } from "../src/rewrite/weights.js";

export interface RoundTanhOptions {
  /** Which projections. */
  readonly includes: (site: LinearSite) => boolean;
}

const INT32 = 6;

export const roundTanh: Pass<RoundTanhOptions> = definePass({
  name: "round-tanh",
  summary: "round the weights of projections to 8 bits on a tanh curve (experimental)",
  exactness: "lossy",
  requires: ["linears-aligned"],
  establishes: ["weights-rounded"],
  invalidates: [],
  run(model, { includes }, _context) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const site of sites.linears) {
      const tensor = model.graph.initializers.get(site.weight);
      if (tensor === undefined || !includes(site)) continue;
      const rounded = roundWeight({ label: site.weight, shape: tensor.shape, data: weightValues(tensor) });
      changed += 1;
      if (rounded.kind === "affine") {
        replaceWeight(edit, site, parseWeightScheme("i8:tensor"), { round: () => rounded.quantized });
        continue;
      }
      const [codes, table] = [edit.unused(`${site.weight}_quantized`), edit.unused(`${site.weight}_table`)];
      const [index, value] = [edit.unused(`${site.weight}_index`), edit.unused(`${site.weight}_value`)];
      edit.addInitializers(
        new Map([
          [codes, tensorFromBytes("u8", rounded.shape, rounded.codes)],
          [table, f32Tensor([rounded.table.length], rounded.table)],
        ]),
      );
      edit.addNodes([
        makeNode("Cast", [codes], [index], new Map([["to", attr.int(INT32)]])),
        makeNode("Gather", [table, index], [value], new Map([["axis", attr.int(0)]])),
      ]);
      edit.swapNode(site.node, { ...site.node, inputs: [site.input, value] });
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});
