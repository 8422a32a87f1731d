/** Projections that stay float, for people: equal reasons together, layers as ranges. */

import type { KeptProjection } from "../kept-projections.js";

/** Lines shown; a document has all. */
const SHOWN = 12;

/** Nodes named that have no layer to be known by. */
const NAMED = 2;

/** `layers.0..23 out_proj: the recipe leaves it float`, a line for each role and reason. */
export function keptLines(kept: readonly KeptProjection[]): string[] {
  const groups = new Map<string, KeptProjection[]>();
  for (const projection of kept) {
    const { layer, role, why } = projection;
    const key = JSON.stringify([role, why, layer === ""]);
    groups.set(key, [...(groups.get(key) ?? []), projection]);
  }
  const lines = [...groups.values()].map((group) => `${namesOf(group)}: ${group[0]?.why ?? ""}`);
  const more = lines.length - SHOWN;
  return more <= 1 ? lines : [...lines.slice(0, SHOWN), `and ${more} more (--json names all)`];
}

/** Projections of one role, all in layers or all outside. */
function namesOf(group: readonly KeptProjection[]): string {
  const [first] = group;
  const role = first?.role ?? "other";
  if (first?.layer !== "") return `${layerRanges(group)} ${role === "other" ? "projections" : role}`;
  if (role !== "other") return role;
  const nodes = group.slice(0, NAMED).map(({ node }) => node);
  const more = group.length - nodes.length;
  return `${nodes.join(", ")}${more === 0 ? "" : ` and ${more} more`}`;
}

/** `layers.0..3,5`: numbers that follow each other as a range, of each prefix in the order it came. */
function layerRanges(group: readonly KeptProjection[]): string {
  const numbers = new Map<string, Set<number>>();
  const others = new Set<string>();
  for (const { layer } of group) {
    const [, prefix, digits] = /^(.*?)(\d+)$/.exec(layer) ?? [];
    if (prefix === undefined || digits === undefined) others.add(layer);
    else numbers.set(prefix, (numbers.get(prefix) ?? new Set()).add(Number(digits)));
  }
  const ranges = [...numbers].map(([prefix, found]) => `${prefix}${rangesOf([...found].sort((a, b) => a - b))}`);
  return [...ranges, ...others].join(", ");
}

function rangesOf(sorted: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const value of sorted) {
    const last = ranges.at(-1);
    if (last !== undefined && last[1] === value - 1) last[1] = value;
    else ranges.push([value, value]);
  }
  return ranges.map(([from, to]) => (from === to ? `${from}` : `${from}..${to}`)).join(",");
}
