/** Node order: ONNX wants producers before readers, captures of subgraphs included. */

import { dependencies, type Node } from "./graph.js";

/**
 * The nodes with producers before readers, otherwise as close to the given order as that allows. Gives the same array
 * when it is in order already, and null when a node depends on itself through others.
 */
export function topologicalOrder(nodes: readonly Node[]): readonly Node[] | null {
  const producer = new Map<string, number>();
  nodes.forEach((node, at) => {
    for (const output of node.outputs) if (output !== "") producer.set(output, at);
  });
  const needs = nodes.map((node) => {
    const makers = dependencies(node).map((name) => producer.get(name));
    return [...new Set(makers.filter((maker) => maker !== undefined))];
  });
  if (needs.every((makers, at) => makers.every((maker) => maker < at))) return nodes;
  // Depth first from each node in turn, without recursion: graphs are thousands of nodes deep.
  const order: Node[] = [];
  const state = new Uint8Array(nodes.length); // 0 new, 1 open, 2 done
  for (let root = 0; root < nodes.length; root++) {
    const stack = [root];
    while (stack.length > 0) {
      const at = stack.at(-1) ?? root;
      const node = nodes[at];
      if (node === undefined || state[at] === 2) {
        stack.pop();
        continue;
      }
      if (state[at] === 1) {
        state[at] = 2;
        order.push(node);
        stack.pop();
        continue;
      }
      state[at] = 1;
      for (const maker of (needs[at] ?? []).toReversed()) {
        if (state[maker] === 1) return null;
        if (state[maker] === 0) stack.push(maker);
      }
    }
  }
  return order;
}
