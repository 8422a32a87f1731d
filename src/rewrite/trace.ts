/**
 * Walks back through nodes that only move data (layout, selection along the length, padding, broadcasting), to the value
 * where the data was made. Two operands with the same root are the same data in two layouts.
 */

import { attrInt, type Graph, type Node, type UseIndex, useIndex } from "../ir/graph.js";
import { concrete, dataFree, isLengthAxis, type View } from "./axes.js";
import { layoutOf } from "./layout.js";

const MOVES_FIRST_INPUT = new Set([
  "Identity",
  "Cast",
  "CastLike",
  "Transpose",
  "Reshape",
  "Flatten",
  "Unsqueeze",
  "Squeeze",
  "Expand",
  "Tile",
  "Pad",
]);

/** Traces values of one viewed graph; results are memoised. */
export class Tracer {
  readonly view: View;
  readonly graph: Graph;
  readonly index: UseIndex;
  readonly free: ReadonlySet<string>;
  readonly #roots = new Map<string, string>();

  constructor(view: View) {
    this.view = view;
    this.graph = view.graph;
    this.index = useIndex(view.graph);
    this.free = dataFree(view.graph);
  }

  /** The value behind all layout changes. A value made by anything but a layout change is its own root. */
  root(name: string): string {
    const path: string[] = [];
    let at = name;
    for (;;) {
      const known = this.#roots.get(at);
      if (known !== undefined) {
        at = known;
        break;
      }
      const next = this.#step(at);
      if (next === null) break;
      path.push(at);
      at = next;
    }
    for (const value of path) this.#roots.set(value, at);
    return at;
  }

  #step(name: string): string | null {
    const node = this.index.producer.get(name);
    const input = node?.inputs[0];
    if (node === undefined || input === undefined || input === "") return null;
    if (node.domain !== "") return null;
    if (MOVES_FIRST_INPUT.has(node.op)) return this.#losesTokens(node.op, input, name) ? null : input;
    if (node.op === "Slice") return this.#slicesLength(node) ? input : null;
    if (node.op === "Gather") return this.#gathersLength(node) || this.#repeatsRows(node) ? input : null;
    if (node.op === "Split") return isLengthAxis(this.view, input, attrInt(node, "axis", 0)) ? input : null;
    return null;
  }

  /** Batch and length apart behind the node but in one axis before it: x W written as a product of matrices. */
  #losesTokens(op: string, input: string, output: string): boolean {
    return op === "Reshape" && layoutOf(this.view, output) !== null && layoutOf(this.view, input) === null;
  }

  /** A Slice along the length only, forwards: the same tokens or a part of them. */
  #slicesLength(node: Node): boolean {
    const input = node.inputs[0] ?? "";
    const output = node.outputs[0] ?? "";
    const from = concrete(this.view, input)?.shape;
    const to = concrete(this.view, output)?.shape;
    if (from === null || from === undefined || to === null || to === undefined) return false;
    const steps = node.inputs[4] === undefined ? null : concrete(this.view, node.inputs[4])?.content;
    if (steps?.some((step) => step !== 1) === true) return false;
    return from.every((size, axis) => size === to[axis] || isLengthAxis(this.view, input, axis));
  }

  /** A Gather that repeats each row of an axis equally often, in order: groups spread over heads. */
  #repeatsRows(node: Node): boolean {
    const input = node.inputs[0] ?? "";
    const picks = concrete(this.view, node.inputs[1] ?? "")?.content;
    const rows = concrete(this.view, input)?.shape?.at(attrInt(node, "axis", 0));
    if (picks == null || rows === undefined || this.free.has(input) || picks.length % rows !== 0) return false;
    return picks.every((pick, at) => pick === Math.floor(at / (picks.length / rows)));
  }

  #gathersLength(node: Node): boolean {
    const input = node.inputs[0] ?? "";
    return (
      this.free.has(node.inputs[1] ?? "") &&
      !this.free.has(input) &&
      isLengthAxis(this.view, input, attrInt(node, "axis", 0))
    );
  }
}
