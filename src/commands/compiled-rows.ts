/** The layers of a file that mambac wrote, read back from its nodes. */

import { attrInt, type Graph, type Model, type Node, qualifiedOp, useIndex, type ValueInfo } from "../ir/graph.js";
import { formatType, packedBytes } from "../ir/types.js";
import { OP_DOMAIN, parseOpName, stateType } from "../ops/names.js";
import type { TableRow } from "./layer-table.js";

/** Was this written by mambac? */
export function isCompiled(model: Model): boolean {
  const ours = model.graph.nodes.some((node) => node.domain === OP_DOMAIN && parseOpName(node.op) !== null);
  return ours || model.metadata.has("mambac.version");
}

/** One row a scan and convolution, in graph order. */
export function compiledRows(model: Model): TableRow[] {
  const inputs = new Map(model.graph.inputs.map((input) => [input.name, input]));
  return model.graph.nodes.flatMap((node) => {
    const sizes = sizesOf(node);
    if (sizes === null) return [];
    const past = publicInput(model.graph, inputs, node.inputs[sizes.past] ?? "");
    const bytes = past === null ? 0 : sequenceBytes(past);
    return {
      layer: node.name.replace(/\.(scan|conv)$/, "") || (node.outputs[0] ?? ""),
      kind: sizes.kind,
      form: qualifiedOp(node),
      error: null,
      sizes: sizes.text,
      states:
        past === null
          ? []
          : [
              {
                past: past.name,
                present: publicOutput(model.graph, node.outputs[1] ?? ""),
                type: past.type === null ? "?" : formatType(past.type),
              },
            ],
      bytesBefore: past === null ? 0 : (sizes.plainBytes ?? bytes),
      bytesAfter: bytes,
    };
  });
}

interface Sizes {
  readonly kind: "scan" | "conv";
  readonly text: string;
  /** Position of the state input. */
  readonly past: number;
  /** Bytes of the state as f32; null where it has the format it always has. */
  readonly plainBytes: number | null;
}

function sizesOf(node: Node): Sizes | null {
  const size = (name: string): number => attrInt(node, name, 0);
  if (node.domain === "com.microsoft") return microsoftSizes(node);
  const spec = node.domain === OP_DOMAIN ? parseOpName(node.op) : null;
  if (spec === null || spec.kind === "rotation" || spec.kind === "gate") return null;
  if (spec.kind === "conv") {
    const activation = spec.activation === "silu" ? " SiLU" : "";
    const text = `E=${size("channels")} K=${size("kernel_size")} W=${size("state_width")}${activation}`;
    return { kind: "conv", text, past: 3, plainBytes: null };
  }
  const [dState, headDim, groups] = [size("d_state"), size("head_dim"), size("num_groups")];
  const channels = size("channels");
  const heads = spec.family === "mamba1" ? channels / headDim : size("num_heads");
  const text =
    spec.family === "mamba1"
      ? `E=${channels} N=${dState} G=${groups}`
      : `H=${heads} P=${headDim} N=${dState} G=${groups}${spec.requantize === "replay" ? ` R=${size("replay_length")}` : ""}`;
  const plainBytes = stateType({ family: spec.family, format: "f32" }, { heads, headDim, dState }).bytes;
  return { kind: "scan", text, past: 7, plainBytes };
}

/** The operators of `--scan linear-attention`; their sizes are in the shapes. */
function microsoftSizes(node: Node): Sizes | null {
  if (node.op === "LinearAttention") {
    const text = `H=${attrInt(node, "kv_num_heads", 0)} G=${attrInt(node, "q_num_heads", 0)}`;
    return { kind: "scan", text, past: 3, plainBytes: null };
  }
  return node.op === "CausalConvWithState" ? { kind: "conv", text: "", past: 3, plainBytes: null } : null;
}

/** The graph input a node's state comes from; a Transpose or a cut may lie between. */
function publicInput(graph: Graph, inputs: ReadonlyMap<string, ValueInfo>, name: string): ValueInfo | null {
  const input = inputs.get(name);
  if (input !== undefined) return input;
  const node = useIndex(graph).producer.get(name);
  return node?.op === "Transpose" || node?.op === "Slice" ? (inputs.get(node.inputs[0] ?? "") ?? null) : null;
}

/** The graph output a node's state goes to; '' where it is computed beside the node. */
function publicOutput(graph: Graph, name: string): string {
  const { outputs, users } = useIndex(graph);
  if (outputs.has(name)) return name;
  const transposed = users.get(name)?.find((user) => user.op === "Transpose")?.outputs[0];
  return transposed !== undefined && outputs.has(transposed) ? transposed : "";
}

function sequenceBytes(value: ValueInfo): number {
  if (value.type?.kind !== "tensor") return 0;
  const shape = (value.type.shape ?? []).slice(1).map((dim) => (typeof dim === "number" ? dim : 0));
  return packedBytes(value.type.dtype, shape) ?? 0;
}
