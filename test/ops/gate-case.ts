/** Models of one gate, random inputs, and what they must give. */

import { f32Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { type Dim, tensorType } from "../../src/ir/types.js";
import { gateReference } from "../../src/ops/gate.js";
import { gateName } from "../../src/ops/names.js";
import { type GateNorm, gateNode } from "../../src/ops/nodes.js";
import { Noise, oneNodeModel, relativeError } from "./scan-case.js";

export interface GateCase {
  readonly channels: number;
  readonly norm: GateNorm | null;
  readonly sloped?: boolean;
}

/** The input behind y and z. */
function factorOf({ norm, sloped }: GateCase): "weight" | "slope" | null {
  return norm !== null ? "weight" : sloped === true ? "slope" : null;
}

export function nameOf({ norm, sloped }: GateCase): string {
  return gateName(norm !== null ? "norm" : sloped === true ? "sloped" : "plain");
}

/** A model of one node, y with its channels in one axis, or in two as a scan gives them. */
export function gateModel(gate: GateCase, heads: number | null, loose: boolean = false): Uint8Array {
  const { channels } = gate;
  const inputs = ["y", "z", factorOf(gate)].filter((name) => name !== null);
  const node = gateNode(gate, inputs, "out");
  const flat: Dim[] = ["b", "l", channels];
  const types = new Map([
    ["y", tensorType("f32", loose ? null : heads === null ? flat : ["b", "l", heads, channels / heads])],
    ["z", tensorType("f32", loose ? null : flat)],
    ["weight", tensorType("f32", loose ? null : [channels])],
    ["slope", tensorType("f32", loose ? null : [channels])],
    ["out", tensorType("f32", loose ? null : flat)],
  ]);
  return oneNodeModel(node, inputs, ["out"], types);
}

export function gateFeeds(
  gate: GateCase,
  heads: number | null,
  outer: readonly [number, number],
  seed: number,
): Map<string, Tensor> {
  const noise = new Noise(seed);
  const { channels } = gate;
  const count = outer[0] * outer[1] * channels;
  const shape = heads === null ? [...outer, channels] : [...outer, heads, channels / heads];
  const feeds = new Map([
    ["y", f32Tensor(shape, noise.normals(count))],
    ["z", f32Tensor([...outer, channels], noise.normals(count, 4))],
  ]);
  const factor = factorOf(gate);
  return factor === null ? feeds : feeds.set(factor, f32Tensor([channels], noise.normals(channels)));
}

/** Largest error relative to the largest value expected. */
export function gateError(gate: GateCase, feeds: ReadonlyMap<string, Tensor>, actual: Tensor): number {
  return relativeError(toNumbers(actual), exactGate(gate, feeds));
}

/** What a gate must give on these inputs. */
export function exactGate(gate: GateCase, feeds: ReadonlyMap<string, Tensor>): Float64Array {
  const input = (name: string): Float64Array => {
    const tensor = feeds.get(name);
    if (tensor === undefined) throw new Error(`no input ${name}`);
    return Float64Array.from(toNumbers(tensor));
  };
  const { channels, norm, sloped = false } = gate;
  return gateReference({
    channels,
    y: input("y"),
    z: input("z"),
    norm: norm === null ? null : { ...norm, weight: input("weight") },
    ...(sloped ? { slope: input("slope") } : {}),
  });
}

/** Every kind of gate. */
export const GATES: readonly GateCase[] = [
  { channels: 12, norm: null },
  { channels: 100, norm: null },
  { channels: 12, norm: null, sloped: true },
  { channels: 52, norm: null, sloped: true },
  { channels: 96, norm: { groupSize: 96, beforeGate: false, epsilon: 1e-5 } },
  { channels: 96, norm: { groupSize: 24, beforeGate: false, epsilon: 1e-6 } },
  { channels: 40, norm: { groupSize: 40, beforeGate: true, epsilon: 1e-5 } },
  { channels: 40, norm: { groupSize: 10, beforeGate: true, epsilon: 1e-7 } },
];
