import fc from "fast-check";
import { expect, test } from "vitest";
import { GraphBuilder, untyped } from "../../src/ir/builder.js";
import { attr, makeNode, type Node } from "../../src/ir/graph.js";
import { topologicalOrder } from "../../src/ir/topological-order.js";

/** Node i makes "v<i>" and reads these others. */
function nodes(reads: readonly (readonly number[])[]): Node[] {
  return reads.map((from, i) =>
    makeNode(
      "Op",
      from.map((j) => `v${j}`),
      [`v${i}`],
    ),
  );
}

function sorted(given: readonly Node[]): boolean {
  const seen = new Set<string>();
  const own = new Set(given.flatMap((node) => node.outputs));
  return given.every((node) => {
    const ready = node.inputs.every((name) => !own.has(name) || seen.has(name));
    for (const name of node.outputs) seen.add(name);
    return ready;
  });
}

test("nodes in order come back as the same array", () => {
  const given = nodes([[], [0], [0, 1]]);
  expect(topologicalOrder(given)).toBe(given);
});

test("moves producers before their first reader and keeps the rest in order", () => {
  const given = nodes([[], [3], [], [0], [1]]);
  expect(topologicalOrder(given)?.map((node) => node.outputs[0])).toEqual(["v0", "v3", "v1", "v2", "v4"]);
});

test("captures of subgraphs count", () => {
  const body = new GraphBuilder("b");
  const out = body.op("Neg", ["late"]);
  const node = makeNode(
    "If",
    ["c"],
    ["y"],
    new Map([["then_branch", attr.graph(body.graph("b", [], [untyped(out)]))]]),
  );
  const late = makeNode("Abs", ["x"], ["late"]);
  expect(topologicalOrder([node, late])).toEqual([late, node]);
});

test("circles have no order", () => {
  expect(topologicalOrder(nodes([[0]]))).toBeNull();
  expect(topologicalOrder(nodes([[1], [0]]))).toBeNull();
  expect(topologicalOrder(nodes([[], [3], [1], [2], [0]]))).toBeNull();
});

test("a chain of 100000 nodes in reverse does not overflow the stack", () => {
  const given = nodes(Array.from({ length: 100_000 }, (_, i) => (i === 0 ? [] : [i - 1]))).toReversed();
  expect(topologicalOrder(given)?.[0]?.outputs).toEqual(["v0"]);
});

test("any shuffled acyclic graph is sorted, any circle found", () => {
  const shuffled = fc.array(fc.array(fc.nat(30), { maxLength: 4 }), { minLength: 8, maxLength: 30 }).chain((reads) => {
    const acyclic = reads.map((from, i) => from.filter((j) => j < i));
    return fc.tuple(fc.constant(acyclic), fc.shuffledSubarray(nodes(acyclic), { minLength: acyclic.length }));
  });
  let moved = 0;
  fc.assert(
    fc.property(shuffled, fc.nat(29), ([reads, given], at) => {
      const order = topologicalOrder(given);
      expect(order === null ? null : sorted(order)).toBe(true);
      expect(new Set(order)).toEqual(new Set(given));
      if (order !== given) moved += 1;
      // Close a circle: the node at the start of an edge now reads its end.
      const end = reads.findIndex((from, i) => i >= at && from.length > 0);
      const start = reads[end]?.[0];
      if (start === undefined) return;
      const closed = given.map((node) =>
        node.outputs[0] === `v${start}` ? { ...node, inputs: [...node.inputs, `v${end}`] } : node,
      );
      expect(topologicalOrder(closed)).toBeNull();
    }),
    { seed: 5, numRuns: 300 },
  );
  expect(moved).toBeGreaterThan(100);
});
