/** Puts a rounded weight into a graph. */

import { type Attribute, attr, type Model, makeNode } from "../ir/graph.js";
import { type ByteSource, type Tensor, tensorFromSource } from "../ir/tensor.js";
import type { DType } from "../ir/types.js";
import { CodeRoom } from "../quant/code-room.js";
import type { Quantized } from "../quant/grid.js";
import { type QuantizedTensors, quantizedTensors, storedBits } from "../quant/packing.js";
import { scaleLayout } from "../quant/scale-layout.js";
import type { WeightScheme } from "../quant/scheme.js";
import type { GraphEdit } from "./edit.js";
import { type LinearSite, sitesOf } from "./sites.js";

/**
 * The last rounded weight: its codes and its scales are written one after the other. Codes that were only lent are not
 * kept.
 */
let latest: {
  readonly key: object;
  readonly tensors: Omit<QuantizedTensors, "codes">;
  readonly codes: Tensor | null;
} | null = null;

/** Memory for codes that are only lent. */
const room = new CodeRoom();

/** How a weight is rounded when its codes are read. */
export interface Rounding {
  /** Rounds; codes may go into the memory given. */
  readonly round: (room: CodeRoom | null) => Quantized;
  /** What `round` reads. */
  readonly weight?: Tensor;
}

/** Puts DequantizeLinear of a rounded weight in front of a projection; rounding happens when the codes are read. */
export function replaceWeight(
  edit: GraphEdit,
  site: LinearSite,
  scheme: WeightScheme,
  { round, weight }: Rounding,
): void {
  const key = {};
  const rounded = (): QuantizedTensors => {
    if (latest?.key === key && latest.codes !== null) return { ...latest.tensors, codes: latest.codes };
    const tensors = quantizedTensors(round(null));
    latest = { key, tensors, codes: tensors.codes };
    return tensors;
  };
  const shape = [site.inFeatures, site.outFeatures];
  const asymmetric = scheme.zero.kind === "asymmetric";
  const codeType: DType = `${asymmetric ? "u" : "i"}${storedBits(scheme.bits)}`;
  const scaleShape = scaleLayout(shape, scheme.granularity).shape;
  const codes: ByteSource = {
    read: (offset, length) =>
      rounded()
        .codes.bytes()
        .subarray(offset, offset + length),
    lend(offset, length, use) {
      if (latest?.key === key && latest.codes !== null) return use(this.read(offset, length));
      const tensors = quantizedTensors(round(room), room);
      latest = { key, tensors, codes: null };
      return use(tensors.codes.bytes().subarray(offset, offset + length));
    },
    prefetch: () => weight?.prefetch(0, weight.byteLength) ?? null,
  };
  const factor = (
    dtype: DType,
    pick: (tensors: Pick<QuantizedTensors, "scales" | "zeroPoints">) => Tensor | null,
  ): Tensor => {
    const read = (offset: number, length: number): Uint8Array => {
      const tensors = latest?.key === key ? latest.tensors : rounded();
      return (
        pick(tensors)
          ?.bytes()
          .subarray(offset, offset + length) ?? new Uint8Array(0)
      );
    };
    return tensorFromSource(dtype, scaleShape, { read }, 0, "lazy");
  };
  const names = {
    codes: `${site.weight}_quantized`,
    scales: `${site.weight}_scale`,
    zeros: `${site.weight}_zero_point`,
    value: `${site.weight}_DequantizeLinear_Output`,
  };
  const initializers = new Map([
    [names.codes, tensorFromSource(codeType, shape, codes, 0, "lazy")],
    [names.scales, factor(scheme.scaleType, ({ scales }) => scales)],
  ]);
  if (asymmetric)
    initializers.set(
      names.zeros,
      factor(codeType, ({ zeroPoints }) => zeroPoints),
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
