/**
 * RMS norms by what they compute: x times a number that depends only on the mean (or sum) of the squares of x over the
 * last axis. Such a norm commutes with every rotation of that axis.
 */

import { attrInt, attrInts, type Node } from "../ir/graph.js";
import { toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { concrete } from "./axes.js";
import type { Sites } from "./sites.js";

const SCALAR_MAPS = new Set(["Reciprocal", "Sqrt", "Cast", "Identity"]);
const SCALAR_PAIRS = new Set(["Add", "Sub", "Mul", "Div", "Pow", "Max"]);
/** Longest chain between the mean and the factor: Add, Sqrt, Reciprocal and casts. */
const LONGEST = 8;

/** The value that `node` normalises, casts aside; null when it is no RMS norm over the last axis, or has a gain. */
export function normalisedValue(sites: Sites, node: Node): string | null {
  if (/^(SimplifiedLayerNormalization|RMSNormalization)$/.test(node.op)) return byOperator(sites, node);
  const [a, b] = node.inputs;
  if (node.domain !== "" || a === undefined || b === undefined) return null;
  const candidates =
    node.op === "Mul"
      ? [
          [a, b],
          [b, a],
        ]
      : node.op === "Div"
        ? [[a, b]]
        : [];
  for (const [x = "", factor = ""] of candidates) {
    const source = squaresBehind(sites, factor);
    if (source !== null && uncast(sites, source) === uncast(sites, x)) return uncast(sites, x);
  }
  return null;
}

/** A norm spelled as a division: x / sqrt(mean(x^2) + epsilon) over the last axis. */
export interface DividedNorm {
  readonly x: string;
  readonly epsilon: number;
}

/** The norm that a Div node ends, exactly of that form; null for any other node. */
export function dividedNorm(sites: Sites, node: Node): DividedNorm | null {
  const made = (name: string, op: string): Node | null => {
    const by = sites.index.producer.get(name);
    return by?.op === op && by.domain === "" ? by : null;
  };
  const [x = "", root = ""] = node.inputs;
  const sum = made(made(root, "Sqrt")?.inputs[0] ?? "", "Add");
  if (node.op !== "Div" || node.domain !== "" || sum === null) return null;
  for (const [mean = "", constant = ""] of [sum.inputs, sum.inputs.toReversed()]) {
    const reduction = made(mean, "ReduceMean");
    const epsilon = concrete(sites.view, constant);
    if (reduction === null || !isLastAxisReduction(sites, reduction) || !isScalar(sites, constant)) continue;
    const [value] = epsilon?.content ?? [];
    if (squared(sites, reduction) === x && value !== undefined && value >= 0) return { x, epsilon: value };
  }
  return null;
}

function byOperator(sites: Sites, node: Node): string | null {
  const [x = "", gain = ""] = node.inputs;
  const tensor = sites.graph.initializers.get(gain);
  const rank = shapeOf(sites, x)?.length ?? 0;
  const last = attrInt(node, "axis", -1) === -1 || attrInt(node, "axis", -1) === rank - 1;
  const plain = node.outputs.slice(1).every((name) => name === "");
  return last && plain && tensor !== undefined && toNumbers(tensor).every((value) => value === 1)
    ? uncast(sites, x)
    : null;
}

/** From a factor back to the value whose squares it is made of. */
function squaresBehind(sites: Sites, factor: string): string | null {
  let at = factor;
  for (let hops = 0; hops < LONGEST; hops++) {
    const node = sites.index.producer.get(at);
    if (node === undefined || node.domain !== "") return null;
    if (isLastAxisReduction(sites, node)) return squared(sites, node);
    if (SCALAR_MAPS.has(node.op)) at = node.inputs[0] ?? "";
    else if (SCALAR_PAIRS.has(node.op) && node.inputs.length === 2) {
      const scalar = node.inputs.findIndex((input) => isScalar(sites, input));
      if (scalar < 0) return null;
      at = node.inputs[1 - scalar] ?? "";
    } else return null;
  }
  return null;
}

const REDUCTIONS = new Set(["ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare"]);

/** A reduction over the last axis that keeps it with size one. */
function isLastAxisReduction(sites: Sites, node: Node): boolean {
  if (!REDUCTIONS.has(node.op) || attrInt(node, "keepdims", 1) !== 1) return false;
  const rank = shapeOf(sites, node.inputs[0] ?? "")?.length;
  const axes = attrInts(node, "axes") ?? concrete(sites.view, node.inputs[1] ?? "")?.content ?? [];
  return rank !== undefined && axes.length === 1 && (Number(axes[0]) + rank) % rank === rank - 1;
}

function squared(sites: Sites, reduction: Node): string | null {
  const [input = ""] = reduction.inputs;
  if (reduction.op === "ReduceL2" || reduction.op === "ReduceSumSquare") return input;
  const node = sites.index.producer.get(input);
  return node === undefined ? null : squareOf(sites, node);
}

/** x of a node x * x or x ** 2. */
function squareOf(sites: Sites, node: Node): string | null {
  const [a = "", b = ""] = node.inputs;
  if (node.domain !== "") return null;
  if (node.op === "Mul") return a === b ? a : null;
  if (node.op !== "Pow") return null;
  const content = concrete(sites.view, b)?.content;
  return content?.length === 1 && content[0] === 2 ? a : null;
}

/** Does `node` read a value only for the sum or mean of its squares over the last axis? Rotations leave that as it is. */
export function isInvariant(sites: Sites, node: Node): boolean {
  if (node.domain !== "") return false;
  if (node.op === "ReduceL2" || node.op === "ReduceSumSquare") return isLastAxisReduction(sites, node);
  const [output = ""] = node.outputs;
  const users = sites.index.users.get(output) ?? [];
  return (
    squareOf(sites, node) !== null &&
    !sites.index.outputs.has(output) &&
    users.length > 0 &&
    users.every((user) => user.domain === "" && (user.op === "Shape" || isLastAxisReduction(sites, user)))
  );
}

function isScalar(sites: Sites, name: string): boolean {
  const shape = sites.graph.initializers.get(name)?.shape ?? (sites.free.has(name) ? shapeOf(sites, name) : null);
  return shape !== null && elementCount(shape) === 1;
}

function uncast(sites: Sites, name: string): string {
  let at = name;
  for (let hops = 0; hops < LONGEST; hops++) {
    const node = sites.index.producer.get(at);
    if (node === undefined || node.domain !== "" || (node.op !== "Cast" && node.op !== "Identity")) return at;
    at = node.inputs[0] ?? "";
  }
  return at;
}

function shapeOf(sites: Sites, name: string): readonly number[] | null {
  return concrete(sites.view, name)?.shape ?? null;
}
