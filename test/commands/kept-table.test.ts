import { expect, test } from "vitest";
import { keptLines } from "../../src/commands/kept-table.js";
import type { KeptProjection } from "../../src/kept-projections.js";

const kept = (layer: string, role: KeptProjection["role"], node = `${layer}.${role}`, why = "so"): KeptProjection => ({
  layer,
  role,
  node,
  why,
});

test("equal reasons are one line over layers, in ranges", () => {
  const layers = [0, 1, 2, 5, 7, 8, 10, 9].map((layer) => kept(`model.layers.${layer}`, "out_proj"));
  expect(keptLines([...layers, kept("", "lm_head", "head")])).toEqual([
    "model.layers.0..2,5,7..10 out_proj: so",
    "lm_head: so",
  ]);
  expect(keptLines([kept("a.1", "in_proj"), kept("b.2", "in_proj"), kept("odd", "in_proj")])).toEqual([
    "a.1, b.2, odd in_proj: so",
  ]);
});

test("other reasons and other roles are lines of their own", () => {
  const rows = [kept("layers.0", "in_proj"), kept("layers.1", "in_proj", "n", "else"), kept("layers.1", "x_proj")];
  expect(keptLines(rows)).toEqual(["layers.0 in_proj: so", "layers.1 in_proj: else", "layers.1 x_proj: so"]);
});

test("what has no layer is named by nodes, a few of them; many lines are cut", () => {
  const rows = ["up", "down", "gate", "router"].map((node) => kept("", "other", node));
  expect(keptLines(rows)).toEqual(["up, down and 2 more: so"]);
  expect(keptLines(rows.slice(0, 2))).toEqual(["up, down: so"]);
  const many = Array.from({ length: 30 }, (_, at) => kept("layers.0", "other", `n${at}`, `reason ${at}`));
  expect(keptLines(many)).toHaveLength(13);
  expect(keptLines(many).at(-1)).toBe("and 18 more (--json names all)");
  expect(keptLines(many.slice(0, 13))).toHaveLength(13);
});

test("nothing kept is nothing said", () => {
  expect(keptLines([])).toEqual([]);
});
