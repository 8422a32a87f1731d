/**
 * raise-attention: replaces proved causal attention whose keys and values are graph outputs by one `CausalAttention`.
 *
 * Purpose: the prefill graph of a hybrid reads no cache, the decode graph reads one but takes one token. As a semantic
 * operator the attention can read a cache of any length for any number of tokens, which is what a merged graph needs.
 * Graphs that already read their cache keep their attention as it is.
 * Algebra: y_i = sum_{j <= past + i} softmax_j(scale q_i . k_j) v_j, keys and values shared by groups of heads.
 * Refuses: attention with a window, a bias or a mask of its own (it does not reproduce to 1e-4).
 *
 *     before   Expand, Transpose, MatMul, Where, Softmax, MatMul ... ; k and v are outputs
 *     after    CausalAttention(q, k, v, past_k, past_v) -> (y, present_k, present_v)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { findAttention, proveAttention } from "../src/rewrite/attention-region.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { attentionNode, layerLabel } from "../src/rewrite/semantic.js";
import { proofTrials } from "../src/rewrite/trials.js";

export const raiseAttention: Pass<Record<string, never>> = definePass({
  name: "raise-attention",
  summary: "replace proved causal attention without a cache by one CausalAttention each",
  exactness: "real-exact",
  requires: ["normalised"],
  establishes: ["attention-raised"],
  invalidates: [],
  async run(model, _options, context) {
    const { tracer, trials } = proofTrials(model);
    const labels = new Set<string>();
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const [at, candidate] of findAttention(tracer).entries()) {
      const layer = layerLabel([candidate.k, candidate.v], at, labels);
      const result = await proveAttention(tracer, candidate, trials, (graph, feeds) =>
        context.execute({ ...model, graph }, feeds),
      );
      if ("reason" in result) {
        context.report({
          kind: "missed",
          code: "raise-attention/not-proved",
          where: `${layer}: ${candidate.anchor.name || candidate.anchor.outputs[0]}`,
          message: `attention is left as it is: ${result.reason}`,
        });
        continue;
      }
      const builder = new GraphBuilder(`mambac.attention${at}.`);
      const { q, k, v, y, heads, kvHeads, headDim, scale, error } = result;
      const outputs = [builder.fresh("y"), builder.fresh("present_k"), builder.fresh("present_v")];
      const fresh = [builder.fresh("k"), builder.fresh("v")];
      builder.nodes.push(
        attentionNode(
          { layer, heads, kvHeads, headDim, scale, error },
          [q, fresh[0] ?? "", fresh[1] ?? "", "", ""],
          outputs,
        ),
      );
      // The public outputs become the caches; the keys and values of this call get names of their own.
      for (const [public_, own, cache] of [
        [k, fresh[0] ?? "", outputs[1] ?? ""],
        [v, fresh[1] ?? "", outputs[2] ?? ""],
      ] as const) {
        const producer = tracer.index.producer.get(public_);
        if (producer === undefined) continue;
        edit.swapNode(producer, {
          ...producer,
          outputs: producer.outputs.map((name) => (name === public_ ? own : name)),
        });
        edit.replaceValue(public_, cache);
      }
      edit.addNodes(builder.nodes);
      edit.replaceValue(y, outputs[0] ?? "");
      changed += 1;
    }
    return { model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed };
  },
});
