/** A QuantizeLinear / DequantizeLinear pair on an activation: what runtimes recognise as a quantized value. */

import type { GraphBuilder } from "../ir/builder.js";
import { type Attribute, attr, makeNode } from "../ir/graph.js";
import { f32Tensor, tensorFromBytes } from "../ir/tensor.js";
import { EXIT, MambacError } from "../support/errors.js";

/**
 * Adds an int8 symmetric pair after `value` and gives the name of what it makes. `ranges`: the largest magnitude to be
 * represented, of the tensor (a number) or of each channel of the last axis; what is larger saturates. `pass` names the
 * caller in messages. Throws `<pass>/range` (exit code 5) for ranges that are negative or not finite.
 */
export function addPair(builder: GraphBuilder, value: string, ranges: number | Float64Array, pass: string): string {
  const list = typeof ranges === "number" ? [ranges] : [...ranges];
  const bad = list.find((range) => !Number.isFinite(range) || range < 0);
  if (bad !== undefined) {
    throw new MambacError(
      `${pass}/range`,
      `the calibrated range of ${value} is ${bad}: the calibration data made it overflow or it holds NaN`,
      EXIT.calibration,
    );
  }
  // An activation that was always zero gets any scale: its codes are all zero.
  const scales = list.map((range) => (range === 0 ? 1 : range / 127));
  const shape = typeof ranges === "number" ? [] : [scales.length];
  const scale = builder.initializer(f32Tensor(shape, scales), "scale");
  const zero = builder.initializer(tensorFromBytes("i8", shape, new Uint8Array(scales.length)), "zero_point");
  const attributes = new Map<string, Attribute>(typeof ranges === "number" ? [] : [["axis", attr.int(-1)]]);
  const [q, dq] = [`${value}_QuantizeLinear_Output`, `${value}_DequantizeLinear_Output`];
  builder.nodes.push(
    makeNode("QuantizeLinear", [value, scale, zero], [q], attributes, { name: `${value}_QuantizeLinear` }),
    makeNode("DequantizeLinear", [q, scale, zero], [dq], attributes, { name: `${value}_DequantizeLinear` }),
  );
  return dq;
}
