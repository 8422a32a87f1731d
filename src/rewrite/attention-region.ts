/**
 * Finds and proves causal attention over one call: the part of a hybrid's prefill graph that must learn to read a cache
 * when prefill and decode become one graph. Keys and values are known exactly, since the exporter gives them as outputs.
 */

import { attrInt, type Node } from "../ir/graph.js";
import { type Tensor, toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { axisRoles, concrete } from "./axes.js";
import { cutRegion, type ExecuteGraph, tensorFromNumbers } from "./region.js";
import { Sampler } from "./sampler.js";
import { PROOF_TOLERANCE, relativeError, type Trial } from "./scan-proof.js";
import type { Tracer } from "./trace.js";

export interface ProvedAttention {
  readonly anchor: Node;
  /** [B, Hq, L, d]. */
  readonly q: string;
  /** Graph outputs [B, Hkv, L, d]. */
  readonly k: string;
  readonly v: string;
  /** [B, Hq, L, d]. */
  readonly y: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  readonly error: number;
}

export interface AttentionCandidate {
  readonly anchor: Node;
  readonly q: string;
  readonly k: string;
  readonly v: string;
  readonly ends: readonly string[];
  readonly scale: number;
}

const AFTER_SOFTMAX = new Set("IsNaN Where MatMul Cast Identity Not And Or Mul".split(" "));

/** A graph output that is a per-token key or value: float, [B, H, L, d]. */
function isCacheOutput(tracer: Tracer, name: string): boolean {
  const roles = axisRoles(tracer.view, name);
  return roles?.length === 4 && roles[2] === "length" && tracer.index.outputs.has(name);
}

/** All softmaxes whose keys and values are outputs of the graph. */
export function findAttention(tracer: Tracer): AttentionCandidate[] {
  return tracer.graph.nodes.flatMap((node) => {
    if (node.op !== "Softmax" || node.domain !== "") return [];
    const rank = concrete(tracer.view, node.outputs[0] ?? "")?.shape?.length;
    const axis = attrInt(node, "axis", -1);
    if (rank === undefined || (axis !== -1 && axis !== rank - 1)) return [];
    const candidate = candidateAt(tracer, node);
    return candidate === null ? [] : [candidate];
  });
}

function candidateAt(tracer: Tracer, softmax: Node): AttentionCandidate | null {
  const scores = skipScores(tracer, softmax.inputs[0] ?? "");
  if (scores === null) return null;
  const [left, right] = scores.node.inputs;
  const q = unscale(tracer, left ?? "");
  const k = unscale(tracer, right ?? "");
  const keys = cacheBehind(tracer, k.value);
  if (keys === null) return null;
  const { ends, values } = follow(tracer, softmax, keys);
  if (values === null) return null;
  return { anchor: softmax, q: q.value, k: keys, v: values, ends, scale: q.scale * k.scale * scores.scale };
}

/** From the softmax's input up to the MatMul of queries and keys, collecting scalar factors. */
function skipScores(tracer: Tracer, name: string): { node: Node; scale: number } | null {
  let scale = 1;
  let at = name;
  for (let hops = 0; hops < 8; hops++) {
    const node = tracer.index.producer.get(at);
    if (node === undefined) return null;
    if (node.op === "MatMul") return { node, scale };
    const [a, b] = node.inputs;
    if (node.op === "Add") {
      const next = [a, b].find((input) => input !== undefined && leadsToProduct(tracer, input));
      if (next === undefined) return null;
      at = next;
    } else if (node.op === "Where")
      at =
        node.inputs[1] !== undefined && leadsToProduct(tracer, node.inputs[1])
          ? node.inputs[1]
          : (node.inputs[2] ?? "");
    else if (node.op === "Mul" || node.op === "Div") {
      const factor = scalar(tracer, b) ?? scalar(tracer, a);
      if (factor === null) return null;
      scale = node.op === "Mul" ? scale * factor : scale / factor;
      at = scalar(tracer, b) === null ? (b ?? "") : (a ?? "");
    } else if (node.op === "Cast" || node.op === "Identity") at = a ?? "";
    else return null;
  }
  return null;
}

function leadsToProduct(tracer: Tracer, name: string): boolean {
  let at = name;
  for (let hops = 0; hops < 4; hops++) {
    const node = tracer.index.producer.get(at);
    if (node?.op === "MatMul") return true;
    if (node === undefined || !["Mul", "Div", "Cast", "Identity", "Add"].includes(node.op)) return false;
    at = scalar(tracer, node.inputs[0]) === null ? (node.inputs[0] ?? "") : (node.inputs[1] ?? "");
  }
  return false;
}

function scalar(tracer: Tracer, name: string | undefined): number | null {
  if (name === undefined || !tracer.free.has(name)) return null;
  const content = concrete(tracer.view, name)?.content;
  return content?.length === 1 ? (content[0] ?? null) : null;
}

/** Steps back over scalar factors. */
function unscale(tracer: Tracer, name: string): { value: string; scale: number } {
  let value = name;
  let scale = 1;
  for (;;) {
    const node = tracer.index.producer.get(value);
    if (node?.op !== "Mul" && node?.op !== "Div") return { value, scale };
    const [a, b] = node.inputs;
    const factor = scalar(tracer, b) ?? (node.op === "Mul" ? scalar(tracer, a) : null);
    if (factor === null) return { value, scale };
    scale = node.op === "Mul" ? scale * factor : scale / factor;
    value = scalar(tracer, b) === null ? (b ?? "") : (a ?? "");
  }
}

/** The cache output behind layout changes and scalar factors, if there is one. */
function cacheBehind(tracer: Tracer, name: string): string | null {
  let at = name;
  for (;;) {
    if (isCacheOutput(tracer, at)) return at;
    const node = tracer.index.producer.get(at);
    if (node === undefined) return null;
    if (["Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Tile", "Cast", "Identity"].includes(node.op))
      at = node.inputs[0] ?? "";
    else if (node.op === "Mul" || node.op === "Div")
      at = unscale(tracer, at).value === at ? "" : unscale(tracer, at).value;
    else return null;
  }
}

function follow(tracer: Tracer, softmax: Node, keys: string): { ends: string[]; values: string | null } {
  const { graph, index, free } = tracer;
  const inside = new Set<string>(softmax.outputs);
  let values: string | null = null;
  const from = index.position.get(softmax) ?? 0;
  for (let at = from + 1; at < Math.min(graph.nodes.length, from + 24); at++) {
    const node = graph.nodes[at];
    if (node === undefined || !AFTER_SOFTMAX.has(node.op)) continue;
    const reads = node.inputs.filter((name) => name !== "");
    if (!reads.some((name) => inside.has(name))) continue;
    if (node.op === "MatMul") {
      const other = reads.find((name) => !inside.has(name));
      const cache = other === undefined ? null : cacheBehind(tracer, other);
      if (cache === null || cache === keys || values !== null) continue;
      values = cache;
    } else if (!reads.every((name) => inside.has(name) || free.has(name) || isMask(tracer, name))) continue;
    for (const output of node.outputs) inside.add(output);
  }
  return { ends: [...inside].reverse(), values };
}

function isMask(tracer: Tracer, name: string): boolean {
  return concrete(tracer.view, name)?.dtype === "bool";
}

/** Runs the region against softmax(scale q k^T, causal) v. */
export async function proveAttention(
  tracer: Tracer,
  candidate: AttentionCandidate,
  trials: readonly Trial[],
  execute: ExecuteGraph,
): Promise<ProvedAttention | { readonly reason: string; readonly error: number | null }> {
  const q = concrete(tracer.view, candidate.q)?.shape;
  const k = concrete(tracer.view, candidate.k)?.shape;
  const [heads, headDim] = [q?.[1], q?.[3]];
  const kvHeads = k?.[1];
  if (
    q?.length !== 4 ||
    heads === undefined ||
    headDim === undefined ||
    kvHeads === undefined ||
    heads % kvHeads !== 0
  ) {
    return { reason: "queries are not [batch, heads, length, head_dim]", error: null };
  }
  let best: number | null = null;
  for (const y of candidate.ends) {
    const shape = concrete(tracer.view, y)?.shape;
    if (shape?.length !== 4 || !shape.every((size, axis) => size === q[axis])) continue;
    let worst = 0;
    let ran = 0;
    for (const trial of trials) {
      const cut = cutRegion(tracer.graph, trial.inference, [candidate.q, candidate.k, candidate.v], [y]);
      if (cut.kind === "open") return { reason: cut.reason, error: best };
      const sampler = new Sampler(`${candidate.q}/${trial.sizes.length}`);
      const feeds = new Map(
        cut.leaves.map((leaf) => [
          leaf.name,
          tensorFromNumbers(leaf.dtype, leaf.shape, sampler.normal(elementCount(leaf.shape))),
        ]),
      );
      let outputs: Map<string, Tensor>;
      try {
        outputs = await execute(cut.graph, feeds);
      } catch (cause) {
        if (ran > 0) break;
        return { reason: cause instanceof Error ? cause.message : String(cause), error: best };
      }
      const data = [candidate.q, candidate.k, candidate.v].map((name) =>
        toNumbers(feeds.get(name) ?? tensorFromNumbers("f32", [0], [])),
      );
      const [qd, kd, vd] = data;
      const actual = outputs.get(y);
      if (qd === undefined || kd === undefined || vd === undefined || actual === undefined)
        return { reason: "a leaf is missing", error: best };
      const dims = {
        batch: trial.sizes.batch,
        length: trial.sizes.length,
        heads,
        kvHeads,
        headDim,
        scale: candidate.scale,
      };
      worst = Math.max(worst, relativeError(toNumbers(actual), attentionReference(dims, qd, kd, vd)));
      ran += 1;
    }
    best = Math.min(best ?? Number.POSITIVE_INFINITY, worst);
    if (ran > 0 && worst <= PROOF_TOLERANCE) {
      return {
        anchor: candidate.anchor,
        q: candidate.q,
        k: candidate.k,
        v: candidate.v,
        y,
        heads,
        kvHeads,
        headDim,
        scale: candidate.scale,
        error: worst,
      };
    }
  }
  return { reason: "it is not causal attention over its own tokens", error: best };
}

interface AttentionDims {
  readonly batch: number;
  readonly length: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
}

function attentionReference(dims: AttentionDims, q: Float64Array, k: Float64Array, v: Float64Array): Float64Array {
  const { batch, length, heads, kvHeads, headDim, scale } = dims;
  const out = new Float64Array(q.length);
  const scores = new Float64Array(length);
  for (let bh = 0; bh < batch * heads; bh++) {
    const kv = Math.floor(bh / heads) * kvHeads + Math.floor((bh % heads) / (heads / kvHeads));
    for (let i = 0; i < length; i++) {
      let top = Number.NEGATIVE_INFINITY;
      for (let j = 0; j <= i; j++) {
        let sum = 0;
        for (let d = 0; d < headDim; d++)
          sum += (q[(bh * length + i) * headDim + d] ?? 0) * (k[(kv * length + j) * headDim + d] ?? 0);
        scores[j] = sum * scale;
        top = Math.max(top, sum * scale);
      }
      let total = 0;
      for (let j = 0; j <= i; j++) total += scores[j] = Math.exp((scores[j] ?? 0) - top);
      for (let j = 0; j <= i; j++) {
        const weight = (scores[j] ?? 0) / total;
        for (let d = 0; d < headDim; d++) {
          const at = (bh * length + i) * headDim + d;
          out[at] = (out[at] ?? 0) + weight * (v[(kv * length + j) * headDim + d] ?? 0);
        }
      }
    }
  }
  return out;
}
