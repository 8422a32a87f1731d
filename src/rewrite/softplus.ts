/** Where a graph takes a softplus: what a selective scan starts with. */

import { type Graph, type Node, useIndex } from "../ir/graph.js";

/** Every softplus of a graph, in its order, and the value each is taken of. */
export function softplusValues(graph: Graph): { readonly node: Node; readonly of: string }[] {
  const { producer } = useIndex(graph);
  return graph.nodes.flatMap((node) => {
    const of = softplusInput(producer, node);
    return of === null ? [] : [{ node, of }];
  });
}

/** The value a softplus is taken of: Softplus itself, or Log(1 + Exp(v)) and its stable form with -|v|. */
function softplusInput(producer: ReadonlyMap<string, Node>, node: Node): string | null {
  if (node.domain !== "") return null;
  if (node.op === "Softplus") return node.inputs[0] ?? null;
  if (node.op !== "Log") return null;
  const sum = producer.get(node.inputs[0] ?? "");
  if (sum?.op !== "Add") return null;
  for (const operand of sum.inputs) {
    const exp = producer.get(operand);
    if (exp?.op !== "Exp") continue;
    let value = exp.inputs[0] ?? "";
    for (let at = producer.get(value); at?.op === "Neg" || at?.op === "Abs"; at = producer.get(value)) {
      value = at.inputs[0] ?? "";
    }
    return value;
  }
  return null;
}
