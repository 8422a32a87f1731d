/**
 * Who reads which columns of a projection. A fold that changes columns is right only where it knows every reader of them.
 *
 * The walk is strict: it follows the channel axis through transposes, casts, splits and slices, and through reshapes that
 * leave the last axis alone; whatever else reads a value is reported as a reader of all columns in it.
 */

import { attrInt, attrInts, type Node } from "../ir/graph.js";
import { concrete } from "./axes.js";
import type { LinearSite, Sites } from "./sites.js";

/** One reader of columns [from, to); `user` null: the value is an output of the graph. */
export interface ColumnUse {
  readonly user: Node | null;
  readonly value: string;
  readonly from: number;
  readonly to: number;
}

/** Channels [from, to) of whatever made them, along one axis of a value. */
export interface Place {
  readonly value: string;
  /** The axis of the channels in the value. */
  readonly axis: number;
  readonly from: number;
  readonly to: number;
}

/** Every reader of a projection's columns. The weight of the projection must be on the right. */
export function columnUses(sites: Sites, linear: LinearSite): ColumnUse[] {
  const rank = shapeOf(sites, linear.output)?.length;
  const all = { value: linear.output, from: 0, to: linear.outFeatures };
  if (rank === undefined || linear.weightSide !== "right") return [{ ...all, user: null }];
  return channelUses(sites, { ...all, axis: rank - 1 });
}

/** Every reader of the channels of a value. */
export function channelUses(sites: Sites, start: Place): ColumnUse[] {
  const uses: ColumnUse[] = [];
  const queue: Place[] = [start];
  for (let at = queue.shift(); at !== undefined; at = queue.shift()) {
    const { value, from, to } = at;
    if (sites.index.outputs.has(value)) uses.push({ user: null, value, from, to });
    for (const user of sites.index.users.get(value) ?? []) {
      if (user.op === "Shape" && user.domain === "") continue;
      const next = follow(sites, user, at);
      if (next === null) uses.push({ user, value, from, to });
      else queue.push(...next);
    }
  }
  return uses;
}

/** Are the columns [from, to) read by these nodes only, and by those as exactly that range? */
export function onlyReaders(
  sites: Sites,
  linear: LinearSite,
  from: number,
  to: number,
  nodes: readonly Node[],
): boolean {
  const touching = columnUses(sites, linear).filter((use) => use.from < to && from < use.to);
  return (
    touching.length > 0 &&
    touching.every((use) => use.user !== null && nodes.includes(use.user) && use.from === from && use.to === to)
  );
}

function follow(sites: Sites, user: Node, at: Place): Place[] | null {
  if (user.domain !== "" || user.inputs[0] !== at.value || user.inputs.indexOf(at.value, 1) >= 0) return null;
  const [output = ""] = user.outputs;
  switch (user.op) {
    case "Identity":
    case "Cast":
      return [{ ...at, value: output }];
    case "Transpose": {
      const axis = attrInts(user, "perm")?.indexOf(at.axis) ?? -1;
      return axis < 0 ? null : [{ ...at, value: output, axis }];
    }
    case "Reshape": {
      const [before, after] = [shapeOf(sites, at.value), shapeOf(sites, output)];
      const kept = before !== null && after !== null && at.axis === before.length - 1 && before.at(-1) === after.at(-1);
      return kept ? [{ ...at, value: output, axis: after.length - 1 }] : null;
    }
    case "Split":
      return split(sites, user, at);
    case "Slice":
      return slice(sites, user, at);
    default:
      return null;
  }
}

function split(sites: Sites, user: Node, at: Place): Place[] | null {
  const rank = shapeOf(sites, at.value)?.length ?? 0;
  const outputs = user.outputs.filter((name) => name !== "");
  if ((attrInt(user, "axis", 0) + rank) % rank !== at.axis) return outputs.map((value) => ({ ...at, value }));
  const places: Place[] = [];
  let from = at.from;
  for (const value of user.outputs) {
    const size = value === "" ? undefined : shapeOf(sites, value)?.[at.axis];
    if (size === undefined) return null;
    places.push({ value, axis: at.axis, from, to: from + size });
    from += size;
  }
  return places;
}

function slice(sites: Sites, user: Node, at: Place): Place[] | null {
  const [output = ""] = user.outputs;
  const [before, after] = [shapeOf(sites, at.value), shapeOf(sites, output)];
  const content = (input: number): readonly number[] | null =>
    concrete(sites.view, user.inputs[input] ?? "")?.content ?? null;
  const starts = content(1);
  if (before === null || after === null || starts === null) return null;
  const axes = content(3) ?? starts.map((_, axis) => axis);
  const place = axes.findIndex((axis) => (axis + before.length) % before.length === at.axis);
  if (place < 0) return [{ ...at, value: output }];
  const [size = 0, kept = 0] = [before[at.axis], after[at.axis]];
  if ((content(4)?.[place] ?? 1) !== 1) return null;
  const raw = starts[place] ?? 0;
  const start = Math.min(raw < 0 ? Math.max(0, raw + size) : raw, size);
  return [{ value: output, axis: at.axis, from: at.from + start, to: at.from + start + kept }];
}

function shapeOf(sites: Sites, name: string): readonly number[] | null {
  return concrete(sites.view, name)?.shape ?? null;
}
