/**
 * Where the projections, norms and gates of each Mamba block are, seen from its scan: what quantization passes work on.
 *
 * Found by following data, not names. A projection is a MatMul (or Gemm) with a two-dimensional weight; a value's source
 * says which columns of which projection it holds.
 */

import { attrInt, attrInts, type Graph, type Model, type Node, type UseIndex, useIndex } from "../ir/graph.js";
import { elementCount } from "../ir/types.js";
import { concrete, dataFree, type View, viewGraph } from "./axes.js";
import { CONV_INPUT, type ConvOp, SCAN_INPUT, type ScanOp, semanticOps } from "./semantic.js";
import { mainOpset } from "./trials.js";

export const LINEAR_ROLES = ["in_proj", "x_proj", "dt_proj", "out_proj", "lm_head", "other"] as const;
export type LinearRole = (typeof LINEAR_ROLES)[number];

/** One projection. */
export interface LinearSite {
  readonly node: Node;
  readonly role: LinearRole;
  /** Layer label, '' outside Mamba blocks. */
  readonly layer: string;
  /** Activation it reads, channels last unless `weightSide` is left. */
  readonly input: string;
  readonly output: string;
  /** Initialiser, or the DequantizeLinear of a rounded one: [K, N], or [N, K] when `transposed`. */
  readonly weight: string;
  readonly transposed: boolean;
  /** `left`: W [N, K] times columns of activations [.., K, L]. */
  readonly weightSide: "right" | "left";
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** A norm's gain: `Mul(gain, normalised)` or the scale input of a norm operator. */
export interface GainSite {
  readonly node: Node;
  /** Initialiser [channels]. */
  readonly gain: string;
  readonly gainInput: number;
  /** The value without the gain; null when the norm operator makes both. */
  readonly normalised: string | null;
  readonly output: string;
}

/** Columns [from, to) of a projection's output. */
export interface Columns {
  readonly linear: LinearSite;
  readonly from: number;
  readonly to: number;
}

/** The gate: Mul(y, silu(z)), with SiLU's Sigmoid and Mul. */
export interface Gate {
  readonly node: Node;
  readonly silu: Node;
  readonly sigmoid: Node;
  readonly z: string;
  /** z times a constant in front of the Sigmoid, which smoothing leaves behind; null where there is none. */
  readonly restored: { readonly node: Node; readonly factor: string } | null;
}

export interface MambaBlock {
  readonly layer: string;
  readonly scan: ScanOp;
  readonly conv: ConvOp | null;
  readonly inProj: LinearSite | null;
  readonly xProj: LinearSite | null;
  readonly dtProj: LinearSite | null;
  readonly outProj: LinearSite | null;
  /** Gain of the norm before in_proj. */
  readonly inputGain: GainSite | null;
  /** Gain of the gated norm before out_proj (Mamba-2). */
  readonly outputGain: GainSite | null;
  /** Columns of in_proj: the convolution's input, the gate z, and dt (Mamba-2). */
  readonly convColumns: Columns | null;
  readonly gateColumns: Columns | null;
  readonly dtColumns: Columns | null;
  readonly gate: Gate | null;
}

const LAYOUT = new Set(["Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity"]);

/** Sites of one raised graph. */
export class Sites {
  readonly graph: Graph;
  readonly view: View;
  readonly index: UseIndex;
  readonly free: ReadonlySet<string>;
  readonly linears: readonly LinearSite[];
  readonly blocks: readonly MambaBlock[];
  readonly #byOutput = new Map<string, LinearSite>();

  constructor(view: View) {
    this.view = view;
    this.graph = view.graph;
    this.index = useIndex(view.graph);
    this.free = dataFree(view.graph);
    const found = this.graph.nodes.flatMap((node) => this.#linearAt(node) ?? []);
    for (const site of found) this.#byOutput.set(site.output, site);
    const blocks = semanticOps(this.graph.nodes).flatMap((op) => (op.kind === "scan" ? [this.#block(op)] : []));
    const roles = new Map<Node, { role: LinearRole; layer: string }>();
    for (const block of blocks) {
      for (const [role, site] of [
        ["in_proj", block.inProj],
        ["x_proj", block.xProj],
        ["dt_proj", block.dtProj],
        ["out_proj", block.outProj],
      ] as const) {
        if (site !== null) roles.set(site.node, { role, layer: block.layer });
      }
    }
    const named = (site: LinearSite): LinearSite => {
      const role =
        roles.get(site.node) ?? (this.#reachesOutput(site.output) ? { role: "lm_head" as const, layer: "" } : null);
      return role === null ? site : { ...site, ...role };
    };
    this.linears = found.map(named);
    const again = (site: LinearSite | null): LinearSite | null => (site === null ? null : named(site));
    this.blocks = blocks.map((block) => ({
      ...block,
      inProj: again(block.inProj),
      xProj: again(block.xProj),
      dtProj: again(block.dtProj),
      outProj: again(block.outProj),
    }));
  }

  /** Is the value a graph output, layout changes and casts aside? */
  #reachesOutput(name: string): boolean {
    let at = name;
    for (let hops = 0; hops < 4; hops++) {
      if (this.index.outputs.has(at)) return this.#shape(at)?.length === this.#shape(name)?.length;
      const [user, ...others] = this.index.users.get(at) ?? [];
      if (user === undefined || others.length > 0 || !(LAYOUT.has(user.op) || user.op === "Mul")) return false;
      at = user.outputs[0] ?? "";
    }
    return false;
  }

  #shape(name: string): readonly number[] | null {
    return concrete(this.view, name)?.shape ?? null;
  }

  /** A weight that a pass has rounded: integer codes behind a DequantizeLinear. */
  #isRounded(name: string): boolean {
    const node = this.index.producer.get(name);
    return node?.op === "DequantizeLinear" && node.inputs.every((input) => this.graph.initializers.has(input));
  }

  #linearAt(node: Node): LinearSite | null {
    if (node.domain !== "" || (node.op !== "MatMul" && node.op !== "Gemm")) return null;
    if (node.metadata.get("mambac.role") === "rotation") return null;
    const [a, b] = node.inputs;
    const [output] = node.outputs;
    if (a === undefined || b === undefined || output === undefined) return null;
    const isWeight = (name: string): boolean => this.graph.initializers.has(name) || this.#isRounded(name);
    const weightSide = isWeight(b) ? "right" : isWeight(a) ? "left" : null;
    if (weightSide === null || (this.free.has(a) && this.free.has(b))) return null;
    const weight = weightSide === "right" ? b : a;
    const shape = this.#shape(weight) ?? [];
    const [rows, columns] = shape;
    if (shape.length !== 2 || rows === undefined || columns === undefined) return null;
    if (node.op === "Gemm" && (weightSide === "left" || attrInt(node, "transA", 0) !== 0)) return null;
    const transposed = weightSide === "left" || (node.op === "Gemm" && attrInt(node, "transB", 0) !== 0);
    return {
      node,
      role: "other",
      layer: "",
      input: weightSide === "right" ? a : b,
      output,
      weight,
      transposed,
      weightSide,
      inFeatures: transposed ? columns : rows,
      outFeatures: transposed ? rows : columns,
    };
  }

  /** The projection columns a value holds, walking back over layout changes and selections of channels. */
  source(name: string): Columns | null {
    let at = name;
    let from = 0;
    let to: number | null = null;
    for (let hops = 0; hops < 32; hops++) {
      const linear = this.#byOutput.get(at);
      if (linear !== undefined) return { linear, from, to: to ?? linear.outFeatures };
      const node = this.index.producer.get(at);
      const input = node?.inputs[0];
      if (node === undefined || input === undefined || node.domain !== "") return null;
      if (LAYOUT.has(node.op)) {
        at = input;
        continue;
      }
      // A bias or a constant factor leaves the columns where they are.
      if ((node.op === "Add" || node.op === "Mul") && node.inputs.some((other) => this.free.has(other))) {
        at = node.inputs.find((other) => !this.free.has(other)) ?? "";
        continue;
      }
      const offset = this.#selection(node, at);
      if (offset === null) return null;
      to = (to ?? offset.size) + offset.start;
      from += offset.start;
      at = input;
    }
    return null;
  }

  /** Start and size of the channels a Split output or a Slice keeps; null when it selects along anything else. */
  #selection(node: Node, output: string): { start: number; size: number } | null {
    const input = this.#shape(node.inputs[0] ?? "");
    const shape = this.#shape(output);
    if (input === null || shape === null || input.length !== shape.length) return null;
    if (node.op === "Split") {
      const axis = (attrInt(node, "axis", 0) + input.length) % input.length;
      let start = 0;
      for (const name of node.outputs) {
        const size = this.#shape(name)?.[axis] ?? 0;
        if (name === output) return { start, size };
        start += size;
      }
      return null;
    }
    if (node.op !== "Slice") return null;
    const axes = input.flatMap((size, axis) => (size === shape[axis] ? [] : [axis]));
    const [axis] = axes;
    const starts = concrete(this.view, node.inputs[1] ?? "")?.content;
    const listed = concrete(this.view, node.inputs[3] ?? "")?.content ?? attrInts(node, "axes");
    if (axes.length !== 1 || axis === undefined || starts == null) return null;
    const place = listed?.findIndex((value) => (value + input.length) % input.length === axis) ?? axis;
    const raw = starts[place] ?? 0;
    return { start: raw < 0 ? raw + (input[axis] ?? 0) : raw, size: shape[axis] ?? 0 };
  }

  /**
   * The projections that read a value, layout changes aside; null when anything else reads it, or when it is an output.
   * Projections must be aligned.
   */
  readersOf(name: string): LinearSite[] | null {
    if (this.index.outputs.has(name)) return null;
    const out: LinearSite[] = [];
    for (const user of this.index.users.get(name) ?? []) {
      const linear = this.linears.find((site) => site.node === user);
      if (linear !== undefined && linear.weightSide === "right" && !linear.transposed) out.push(linear);
      else if (user.op !== "Shape") return null;
    }
    return out;
  }

  /** Does the result of `from` reach `to`, over layout changes, and nothing else? */
  leadsOnlyTo(from: Node, to: Node): boolean {
    let [at = ""] = from.outputs;
    for (;;) {
      const [user, ...others] = this.index.users.get(at) ?? [];
      if (user === undefined || others.length > 0 || this.index.outputs.has(at)) return false;
      if (user === to) return true;
      if (!LAYOUT.has(user.op) || user.domain !== "") return false;
      at = user.outputs[0] ?? "";
    }
  }

  /** The gain that makes `name`, if a norm made it. */
  gainOf(name: string): GainSite | null {
    let at = name;
    for (;;) {
      const node = this.index.producer.get(at);
      if (node === undefined) return null;
      if (LAYOUT.has(node.op) && node.domain === "") {
        at = node.inputs[0] ?? "";
        continue;
      }
      if (/^(SimplifiedLayerNormalization|RMSNormalization)$/.test(node.op)) {
        const gain = node.inputs[1] ?? "";
        return this.graph.initializers.has(gain) ? { node, gain, gainInput: 1, normalised: null, output: at } : null;
      }
      if (node.op !== "Mul" || node.domain !== "") return null;
      const place = node.inputs.findIndex((input) => this.graph.initializers.has(input));
      const gain = node.inputs[place] ?? "";
      const normalised = node.inputs[1 - place] ?? "";
      if (place < 0 || !this.isNormalised(normalised)) return null;
      return { node, gain, gainInput: place, normalised, output: at };
    }
  }

  /** The norm that makes `name`, with its gain if that is the last thing done to it. */
  normOf(name: string): { readonly output: string; readonly gain: GainSite | null } | null {
    const gain = this.gainOf(name);
    if (gain !== null) return gain.output === name ? { output: name, gain } : { output: name, gain: null };
    return this.isNormalised(name) ? { output: name, gain: null } : null;
  }

  /** x * rsqrt(mean(x^2) + eps), as Mul or Div, layout changes allowed. */
  isNormalised(name: string): boolean {
    let at = name;
    for (let hops = 0; hops < 6; hops++) {
      const node = this.index.producer.get(at);
      if (node === undefined) return false;
      if (LAYOUT.has(node.op)) {
        at = node.inputs[0] ?? "";
        continue;
      }
      if (node.op !== "Mul" && node.op !== "Div") return false;
      return node.inputs.some((input) =>
        ["Reciprocal", "Sqrt", "Div", "Pow"].includes(this.index.producer.get(input)?.op ?? ""),
      );
    }
    return false;
  }

  #block(scan: ScanOp): MambaBlock {
    const conv = this.#convBefore(scan);
    const convColumns = conv === null ? null : this.source(conv.node.inputs[CONV_INPUT.x] ?? "");
    const dt = this.source(scan.node.inputs[SCAN_INPUT.dt] ?? "");
    const inProj = convColumns?.linear ?? this.#projectionBefore(scan);
    const dtProj = dt !== null && dt.linear !== inProj ? dt.linear : null;
    const b = this.source(this.#beforeNorm(scan.node.inputs[SCAN_INPUT.B] ?? ""));
    const xProj = b !== null && b.linear !== inProj ? b.linear : null;
    const after = this.#afterScan(scan.node.outputs[0] ?? "");
    return {
      layer: scan.layer,
      scan,
      conv,
      inProj,
      xProj,
      dtProj,
      outProj: after.outProj,
      inputGain: inProj === null ? null : this.gainOf(inProj.input),
      outputGain: after.outProj === null ? null : this.gainOf(after.outProj.input),
      convColumns,
      gateColumns: after.gate === null ? null : this.source(after.gate.z),
      dtColumns: dt !== null && dt.linear === inProj ? dt : null,
      gate: after.gate,
    };
  }

  /** Steps over an extra norm on B. */
  #beforeNorm(name: string): string {
    let at = name;
    for (let hops = 0; hops < 8; hops++) {
      const node = this.index.producer.get(at);
      if (node !== undefined && LAYOUT.has(node.op)) at = node.inputs[0] ?? "";
      else if (node?.op === "Mul" || node?.op === "Div") {
        const next = node.inputs.find(
          (input) =>
            !this.free.has(input) && !["Reciprocal", "Sqrt", "Div"].includes(this.index.producer.get(input)?.op ?? ""),
        );
        if (next === undefined) return at;
        at = next;
      } else return at;
    }
    return at;
  }

  #convBefore(scan: ScanOp): ConvOp | null {
    let at = scan.node.inputs[SCAN_INPUT.x] ?? "";
    for (let hops = 0; hops < 16; hops++) {
      const node = this.index.producer.get(at);
      if (node === undefined) return null;
      const op = semanticOps([node])[0];
      if (op?.kind === "conv") return op;
      if (!LAYOUT.has(node.op) && node.op !== "Split" && node.op !== "Slice") return null;
      at = node.inputs[0] ?? "";
    }
    return null;
  }

  /** The projection behind x where other convolutions, or scans in several directions, lie between. */
  #projectionBefore(scan: ScanOp): LinearSite | null {
    let at = scan.node.inputs[SCAN_INPUT.x] ?? "";
    for (let hops = 0; hops < 32; hops++) {
      const columns = this.source(at);
      if (columns !== null) return columns.linear;
      const node = this.index.producer.get(at);
      if (node === undefined || node.domain !== "") return null;
      // SiLU is a product of a value and its Sigmoid; whatever else there is keeps its data first.
      const silu = node.inputs.find((input) => this.index.producer.get(input)?.op === "Sigmoid");
      const through = LAYOUT.has(node.op) || /^(Split|Slice|Concat|Conv)$/.test(node.op);
      if (!through && (node.op !== "Mul" || silu === undefined)) return null;
      at = node.inputs.find((input) => input !== silu) ?? "";
    }
    return null;
  }

  /** From y to out_proj, noting the gate on the way. */
  #afterScan(y: string): { outProj: LinearSite | null; gate: MambaBlock["gate"] } {
    const reach = new Set<string>([y]);
    let gate: MambaBlock["gate"] = null;
    const start = this.index.position.get(this.index.producer.get(y) as Node) ?? 0;
    for (let at = start + 1; at < Math.min(this.graph.nodes.length, start + 64); at++) {
      const node = this.graph.nodes[at];
      if (node === undefined || !node.inputs.some((input) => reach.has(input))) continue;
      const linear = node.outputs[0] === undefined ? undefined : this.#byOutput.get(node.outputs[0]);
      if (linear !== undefined) return { outProj: linear, gate };
      for (const output of node.outputs) reach.add(output);
      if (node.op !== "Mul" || gate !== null) continue;
      const other = node.inputs.find((input) => !reach.has(input));
      const silu = this.index.producer.get(other === undefined ? "" : this.#throughLayout(other));
      if (silu?.op !== "Mul") continue;
      for (const z of silu.inputs) {
        const sigmoid = silu.inputs
          .map((input) => this.index.producer.get(input))
          .find((candidate) => candidate?.op === "Sigmoid");
        if (sigmoid === undefined) continue;
        if (sigmoid.inputs[0] === z) gate = { node, silu, sigmoid, z, restored: null };
        const restored = this.#restored(sigmoid, z);
        if (restored !== null) gate = { node, silu, sigmoid, z, restored };
      }
    }
    return { outProj: null, gate };
  }

  /** The product of z and a constant that `sigmoid`, and nothing else, reads. */
  #restored(sigmoid: Node, z: string): Gate["restored"] {
    const [input = ""] = sigmoid.inputs;
    const node = this.index.producer.get(input);
    const factor = node?.inputs.find((name) => name !== z);
    const alone = this.index.users.get(input)?.length === 1 && !this.index.outputs.has(input);
    if (node?.op !== "Mul" || factor === undefined || !node.inputs.includes(z) || !alone) return null;
    return this.graph.initializers.has(factor) ? { node, factor } : null;
  }

  #throughLayout(name: string): string {
    let at = name;
    for (
      let node = this.index.producer.get(at);
      node !== undefined && LAYOUT.has(node.op);
      node = this.index.producer.get(at)
    ) {
      at = node.inputs[0] ?? "";
    }
    return at;
  }

  /** Elements of an initialiser. */
  weightSize(name: string): number {
    return elementCount(this.graph.initializers.get(name)?.shape ?? []);
  }
}

/** The sites of a model's main graph. */
export function sitesOf(model: Model): Sites {
  return new Sites(viewGraph(model.graph, mainOpset(model)));
}
