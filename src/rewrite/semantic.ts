/**
 * The semantic operators every pass between raise and lower sees, whatever exporter wrote the source (domain `mambac.ir`,
 * never written to a file):
 *
 * - `SelectiveScan` (x, dt, A, B, C, D, dt_bias, past) -> (y, present), shapes as in `runtime-ops/README.md`; with static
 *   scales also row_step and column_step;
 * - `CausalConv` (x, weight, bias, past) -> (y, present), channels before tokens; after fuse-conv also tokens before channels,
 *   with `first` and, where y is handed out in three parts, -> (y, present, y2, y3) and `parts`;
 * - `CausalAttention` (q, k, v, past_k, past_v) -> (y, present_k, present_v), only in hybrids merged from a pair.
 *
 * `past` and `present` are graph inputs and outputs in their public layout, or '' while the graph has none.
 */

import { type Attribute, attr, attrFloat, attrInt, attrInts, attrString, makeNode, type Node } from "../ir/graph.js";
import {
  DEFAULT_REPLAY_LENGTH,
  type Family,
  type Requantize,
  type StateFormat,
  type StateScale,
} from "../ops/names.js";
import type { ConvRows } from "../ops/nodes.js";
import type { ConvForm } from "./conv-region.js";
import type { ScanForm } from "./scan-form.js";
import type { StateLayout } from "./scan-hypotheses.js";

export const SEMANTIC_DOMAIN = "mambac.ir";

/** How a scan keeps its state between calls. */
export interface StateChoice {
  readonly format: StateFormat;
  readonly scale: StateScale;
  readonly requantize: Requantize;
  /** Tokens between roundings with `replay`, 1 to 64; default 16. */
  readonly replayLength?: number;
}

/**
 * Why an operator starts from zeros in every call and hands nothing on: `turned` where the graph reads its tokens in both
 * directions, `inner` where what is scanned is no sequence of tokens of the input, but patches of a picture.
 */
export type Stateless = "turned" | "inner";

/** A state kept as it is: nothing is rounded. */
export const FLOAT_STATE: StateChoice = { format: "f32", scale: "dsq", requantize: "call" };

export interface ScanOp {
  readonly kind: "scan";
  readonly node: Node;
  readonly layer: string;
  readonly form: ScanForm;
  readonly family: Family;
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  readonly groups: number;
  readonly dtMin: number;
  readonly dtMax: number;
  readonly stateLayout: StateLayout;
  readonly error: number;
  readonly state: StateChoice;
  readonly stateless?: Stateless;
}

export interface ConvOp {
  readonly kind: "conv";
  readonly node: Node;
  readonly layer: string;
  readonly form: ConvForm;
  readonly channels: number;
  readonly kernelSize: number;
  readonly stateWidth: number;
  readonly activation: "none" | "silu";
  /** Where tokens come before channels; null: channels before tokens. */
  readonly rows: ConvRows | null;
  readonly error: number;
  readonly stateless?: Stateless;
}

export interface AttentionOp {
  readonly kind: "attention";
  readonly node: Node;
  readonly layer: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  readonly error: number;
}

export type SemanticOp = ScanOp | ConvOp | AttentionOp;

/** Metadata of a scan whose channels are sorted: the cluster of each channel, as a JSON list. */
export const CLUSTERS_KEY = "mambac.clusters";

/** Input and output positions, so that passes do not count. */
export const SCAN_INPUT = {
  x: 0,
  dt: 1,
  A: 2,
  B: 3,
  C: 4,
  D: 5,
  dtBias: 6,
  past: 7,
  rowStep: 8,
  columnStep: 9,
} as const;
export const CONV_INPUT = { x: 0, weight: 1, bias: 2, past: 3 } as const;
export const ATTENTION_INPUT = { q: 0, k: 1, v: 2, pastK: 3, pastV: 4 } as const;

export function scanNode(
  op: Omit<ScanOp, "kind" | "node">,
  inputs: readonly string[],
  outputs: readonly string[],
): Node {
  return semanticNode("SelectiveScan", op.layer, inputs, outputs, {
    form: attr.string(op.form),
    family: attr.string(op.family),
    num_heads: attr.int(op.heads),
    head_dim: attr.int(op.headDim),
    d_state: attr.int(op.dState),
    num_groups: attr.int(op.groups),
    dt_min: attr.float(op.dtMin),
    dt_max: attr.float(op.dtMax),
    state_layout: attr.string(op.stateLayout),
    state_format: attr.string(op.state.format),
    state_scale: attr.string(op.state.scale),
    requantize: attr.string(op.state.requantize),
    ...(op.state.requantize === "replay"
      ? { replay_length: attr.int(op.state.replayLength ?? DEFAULT_REPLAY_LENGTH) }
      : {}),
    error: attr.float(op.error),
    ...statelessAttribute(op),
  });
}

function statelessAttribute({ stateless }: { readonly stateless?: Stateless }): Readonly<Record<string, Attribute>> {
  return stateless === undefined ? {} : { stateless: attr.string(stateless) };
}

export function convNode(
  op: Omit<ConvOp, "kind" | "node" | "rows"> & { readonly rows?: ConvRows | null },
  inputs: readonly string[],
  outputs: readonly string[],
): Node {
  return semanticNode("CausalConv", op.layer, inputs, outputs, {
    form: attr.string(op.form),
    channels: attr.int(op.channels),
    kernel_size: attr.int(op.kernelSize),
    state_width: attr.int(op.stateWidth),
    activation: attr.string(op.activation),
    ...(op.rows == null ? {} : { first: attr.int(op.rows.first) }),
    ...(op.rows?.parts == null ? {} : { parts: attr.ints(op.rows.parts) }),
    error: attr.float(op.error),
    ...statelessAttribute(op),
  });
}

export function attentionNode(
  op: Omit<AttentionOp, "kind" | "node">,
  inputs: readonly string[],
  outputs: readonly string[],
): Node {
  return semanticNode("CausalAttention", op.layer, inputs, outputs, {
    num_heads: attr.int(op.heads),
    kv_num_heads: attr.int(op.kvHeads),
    head_dim: attr.int(op.headDim),
    scale: attr.float(op.scale),
    error: attr.float(op.error),
  });
}

function semanticNode(
  op: string,
  layer: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Readonly<Record<string, Attribute>>,
): Node {
  const all = new Map<string, Attribute>([["layer", attr.string(layer)], ...Object.entries(attributes)]);
  return makeNode(op, inputs, outputs, all, { domain: SEMANTIC_DOMAIN, name: `${layer}.${op}` });
}

/** Reads a semantic node; null for any other node. */
export function readSemantic(node: Node): SemanticOp | null {
  if (node.domain !== SEMANTIC_DOMAIN) return null;
  const base = { node, layer: attrString(node, "layer", ""), error: attrFloat(node, "error", 0) };
  switch (node.op) {
    case "SelectiveScan":
      return {
        kind: "scan",
        ...base,
        form: attrString(node, "form", "") as ScanForm,
        family: attrString(node, "family", "") as Family,
        heads: attrInt(node, "num_heads", 0),
        headDim: attrInt(node, "head_dim", 0),
        dState: attrInt(node, "d_state", 0),
        groups: attrInt(node, "num_groups", 0),
        dtMin: attrFloat(node, "dt_min", Number.NEGATIVE_INFINITY),
        dtMax: attrFloat(node, "dt_max", Number.POSITIVE_INFINITY),
        stateLayout: attrString(node, "state_layout", "PN") as StateLayout,
        state: readState(node),
        ...readStateless(node),
      };
    case "CausalConv":
      return {
        kind: "conv",
        ...base,
        form: attrString(node, "form", "") as ConvForm,
        channels: attrInt(node, "channels", 0),
        kernelSize: attrInt(node, "kernel_size", 0),
        stateWidth: attrInt(node, "state_width", 0),
        activation: attrString(node, "activation", "none") === "silu" ? "silu" : "none",
        ...readStateless(node),
        rows: readRows(node),
      };
    case "CausalAttention":
      return {
        kind: "attention",
        ...base,
        heads: attrInt(node, "num_heads", 0),
        kvHeads: attrInt(node, "kv_num_heads", 0),
        headDim: attrInt(node, "head_dim", 0),
        scale: attrFloat(node, "scale", 1),
      };
    default:
      return null;
  }
}

function readStateless(node: Node): { readonly stateless?: Stateless } {
  const text = attrString(node, "stateless", "");
  return text === "" ? {} : { stateless: text as Stateless };
}

function readRows(node: Node): ConvRows | null {
  if (!node.attributes.has("first")) return null;
  const [one, two, three] = attrInts(node, "parts") ?? [];
  const whole = one === undefined || two === undefined || three === undefined;
  return { first: attrInt(node, "first", 0), parts: whole ? null : [one, two, three] };
}

function readState(node: Node): StateChoice {
  const choice = {
    format: attrString(node, "state_format", "f32") as StateFormat,
    scale: attrString(node, "state_scale", "dsq") as StateScale,
    requantize: attrString(node, "requantize", "call") as Requantize,
  };
  if (choice.requantize !== "replay") return choice;
  return { ...choice, replayLength: attrInt(node, "replay_length", DEFAULT_REPLAY_LENGTH) };
}

/** The semantic operators of a graph, in graph order. */
export function semanticOps(nodes: readonly Node[]): SemanticOp[] {
  return nodes.flatMap((node) => readSemantic(node) ?? []);
}

/**
 * The layer a region belongs to: the layer number that most of the names around it carry, else its position. `taken`
 * holds the labels given to regions of the same kind, so that no two share one.
 */
export function layerLabel(names: readonly string[], fallback: number, taken: Set<string>): string {
  const votes = new Map<string, number>();
  for (const name of names) {
    const found = /(?:layers?|blocks?|present_(?:conv|ssm)|present|past)[._/](\d+)/.exec(name);
    if (found?.[1] !== undefined) votes.set(found[1], (votes.get(found[1]) ?? 0) + 1);
  }
  const best = [...votes].sort((a, b) => b[1] - a[1])[0]?.[0] ?? String(fallback);
  let label = `layers.${best}`;
  for (let twin = 2; taken.has(label); twin++) label = `layers.${best}.${twin}`;
  taken.add(label);
  return label;
}
