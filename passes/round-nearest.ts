/**
 * round-nearest: rounds the weights of projections to an integer grid, each to the nearest point.
 *
 * Papers: the naive schemes of PTQ-SSM, and the baseline of every other method.
 * Algebra: W = s (q - z), q = clamp(round_half_even(W / s) + z); one s for a tensor, an output channel, or a group of
 * inputs of one output.
 * Emits DequantizeLinear(codes, scales) in front of the MatMul, codes in [K, N]: the form ONNX Runtime multiplies with
 * integer kernels.
 * Refuses: weights with NaN or infinity (exit 5), and schemes whose axis a weight does not have.
 *
 *     before   MatMul(x, W f32[K, N])
 *     after    MatMul(x, DequantizeLinear(codes i8[K, N], scales f32[N]))
 */

import { type Attribute, attr, makeNode } from "../src/ir/graph.js";
import { type Tensor, tensorFromSource } from "../src/ir/tensor.js";
import type { DType } from "../src/ir/types.js";
import { type Quantized } from "../src/quant/grid.js";
import { type QuantizedTensors, quantizedTensors, storedBits } from "../src/quant/packing.js";
import { roundToNearest } from "../src/quant/round-nearest.js";
import { scaleLayout } from "../src/quant/scale-layout.js";
import type { WeightScheme } from "../src/quant/scheme.js";
import { viewGraph } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { type LinearSite, Sites } from "../src/rewrite/sites.js";
import { mainOpset } from "../src/rewrite/trials.js";
import { weightValues } from "../src/rewrite/weights.js";

export interface RoundNearestOptions {
  /** The scheme of a projection, or null to leave it float. */
  readonly schemeFor: (site: LinearSite) => WeightScheme | null;
}

export const roundNearest: Pass<RoundNearestOptions> = definePass({
  name: "round-nearest",
  summary: "round the weights of projections to the nearest point of an integer grid",
  exactness: "lossy",
  requires: ["linears-aligned"],
  establishes: ["weights-rounded"],
  invalidates: [],
  run(model, options, _context) {
    const sites = new Sites(viewGraph(model.graph, mainOpset(model)));
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const site of sites.linears) {
      const tensor = model.graph.initializers.get(site.weight);
      const scheme = tensor === undefined ? null : options.schemeFor(site);
      if (tensor === undefined || scheme === null) continue;
      replaceWeight(edit, site, scheme, () =>
        roundToNearest({ label: site.weight, shape: tensor.shape, data: weightValues(tensor) }, scheme),
      );
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

/** The last rounded weight: its codes and its scales are written one after the other. */
let latest: { readonly key: object; readonly tensors: QuantizedTensors } | null = null;

/** Puts DequantizeLinear of a rounded weight in front of a projection; rounding happens when the codes are read. */
export function replaceWeight(edit: GraphEdit, site: LinearSite, scheme: WeightScheme, round: () => Quantized): void {
  const key = {};
  const rounded = (): QuantizedTensors => {
    if (latest?.key !== key) latest = { key, tensors: quantizedTensors(round()) };
    return latest.tensors;
  };
  const shape = [site.inFeatures, site.outFeatures];
  const asymmetric = scheme.zero.kind === "asymmetric";
  const codeType: DType = `${asymmetric ? "u" : "i"}${storedBits(scheme.bits)}`;
  const scaleShape = scaleLayout(shape, scheme.granularity).shape;
  const part = (dtype: DType, of: readonly number[], pick: (tensors: QuantizedTensors) => Tensor | null): Tensor =>
    tensorFromSource(
      dtype,
      of,
      {
        read: (offset, length) =>
          pick(rounded())
            ?.bytes()
            .subarray(offset, offset + length) ?? new Uint8Array(0),
      },
      0,
      "lazy",
    );
  const names = {
    codes: `${site.weight}_quantized`,
    scales: `${site.weight}_scale`,
    zeros: `${site.weight}_zero_point`,
    value: `${site.weight}_DequantizeLinear_Output`,
  };
  const initializers = new Map([
    [names.codes, part(codeType, shape, (tensors) => tensors.codes)],
    [names.scales, part(scheme.scaleType, scaleShape, (tensors) => tensors.scales)],
  ]);
  if (asymmetric)
    initializers.set(
      names.zeros,
      part(codeType, scaleShape, (tensors) => tensors.zeroPoints),
    );
  const attributes = new Map<string, Attribute>();
  if (scheme.granularity.kind !== "tensor") attributes.set("axis", attr.int(scheme.granularity.axis));
  if (scheme.granularity.kind === "group") attributes.set("block_size", attr.int(scheme.granularity.size));
  edit.addInitializers(initializers);
  const inputs = asymmetric ? [names.codes, names.scales, names.zeros] : [names.codes, names.scales];
  edit.addNodes([
    makeNode("DequantizeLinear", inputs, [names.value], attributes, { name: `${site.weight}_DequantizeLinear` }),
  ]);
  edit.swapNode(site.node, { ...site.node, inputs: [site.input, names.value] });
}
