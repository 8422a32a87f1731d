/** Puts a rounded weight into a graph. */

import { type Attribute, attr, type Model, makeNode } from "../ir/graph.js";
import { type Tensor, tensorFromSource } from "../ir/tensor.js";
import type { DType } from "../ir/types.js";
import type { Quantized } from "../quant/grid.js";
import { type QuantizedTensors, quantizedTensors, storedBits } from "../quant/packing.js";
import { scaleLayout } from "../quant/scale-layout.js";
import type { WeightScheme } from "../quant/scheme.js";
import type { GraphEdit } from "./edit.js";
import { type LinearSite, sitesOf } from "./sites.js";

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

/** The activations that projections read whose weights get a scheme: those whose second moments roundings ask for. */
export function roundedInputs(model: Model, schemeFor: (site: LinearSite) => WeightScheme | null): string[] {
  const sites = sitesOf(model);
  return [...new Set(sites.linears.flatMap((site) => (schemeFor(site) === null ? [] : [site.input])))];
}
