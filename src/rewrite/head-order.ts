/**
 * What has to follow when the heads and channels of a Mamba-2 scan change places, and whether all of it is known.
 *
 * The order of channels goes through the gate and the norm behind the scan up to out_proj, and back through the
 * convolution to in_proj; B and C, and everything along d_state, stay.
 */

import type { Node } from "../ir/graph.js";
import { elementCount } from "../ir/types.js";
import { concrete } from "./axes.js";
import { type ColumnUse, channelUses, columnUses } from "./column-uses.js";
import { type ConvOp, SCAN_INPUT } from "./semantic.js";
import type { GainSite, LinearSite, MambaBlock, Sites } from "./sites.js";

/** A Mamba-2 block whose heads, inside their groups, and channels, inside their heads, may change places. */
export interface OrderedBlock {
  readonly block: MambaBlock;
  readonly inProj: LinearSite;
  readonly outProj: LinearSite;
  readonly conv: ConvOp;
  /** Null where nothing with channels stands between the gate and out_proj. */
  readonly gain: GainSite | null;
  /** The scan's x as [.., heads * channels], as calibration names it. */
  readonly x: string;
  /** First columns of in_proj that hold the gate, the scan's x, and dt. */
  readonly columns: { readonly gate: number; readonly x: number; readonly dt: number };
}

const ELEMENTWISE = new Set(["Mul", "Div", "Add", "Sub", "Pow", "Sqrt", "Reciprocal", "Cast", "Identity"]);

/** The parts of a block that follow its order, or why they are not known. */
export function orderedBlock(sites: Sites, block: MambaBlock): OrderedBlock | string {
  const { scan, conv, inProj, outProj, gate, gateColumns, convColumns, dtColumns } = block;
  if (scan.family !== "mamba2") return "every channel of Mamba-1 is a head of its own";
  if (inProj === null || outProj === null || conv === null || gate === null) return "it has no gate or projection";
  if (gateColumns?.linear.node !== inProj.node || dtColumns?.linear.node !== inProj.node || convColumns === null)
    return "gate, dt and the convolution do not come from one projection";
  const inner = scan.heads * scan.headDim;
  const uses = columnUses(sites, inProj);
  const columns = { gate: gateColumns.from, x: convColumns.from, dt: dtColumns.from };
  const exact = (from: number, to: number, readers: readonly Node[]): boolean => readBy(uses, from, to, readers);
  if (!exact(columns.gate, columns.gate + inner, [gate.silu, gate.sigmoid])) return "something else reads the gate";
  if (!exact(columns.x, columns.x + conv.channels, [conv.node])) return "something else reads the convolution's input";
  if (!exact(columns.dt, columns.dt + scan.heads, [scan.node])) return "something else reads dt, or it has a bias";
  const [convolved = ""] = conv.node.outputs;
  const x = sites.index.producer.get(scan.node.inputs[SCAN_INPUT.x] ?? "");
  const after = channelUses(sites, { value: convolved, axis: 1, from: 0, to: conv.channels });
  if (x?.op !== "Reshape" || !readBy(after, 0, inner, [x])) return "the scan's x is not the first channels convolved";
  const gain = block.outputGain;
  const trouble = behindScan(sites, block, outProj, gain, inner);
  return trouble ?? { block, inProj, outProj, conv, gain, x: x.inputs[0] ?? "", columns };
}

/** Do exactly these nodes read the channels [from, to), as exactly that range, and nothing else any of them? */
function readBy(uses: readonly ColumnUse[], from: number, to: number, readers: readonly Node[]): boolean {
  const touching = uses.filter((use) => use.from < to && from < use.to);
  return (
    touching.length > 0 &&
    touching.every(({ user, from: a, to: b }) => user !== null && readers.includes(user) && a === from && b === to)
  );
}

/** Why the order of channels does not pass from the scan to out_proj; null when it does. */
function behindScan(
  sites: Sites,
  { scan, gate }: MambaBlock,
  outProj: LinearSite,
  gain: GainSite | null,
  inner: number,
): string | null {
  const [y = ""] = scan.node.outputs;
  const reached = new Set([y]);
  const group = inner / scan.groups;
  const queue = [y];
  for (let value = queue.shift(); value !== undefined; value = queue.shift()) {
    if (sites.index.outputs.has(value)) return "what the scan gives is an output of the graph";
    for (const user of sites.index.users.get(value) ?? []) {
      if (user === outProj.node || user.op === "Shape") continue;
      const [output = ""] = user.outputs;
      if (user.domain !== "") return `${user.op} reads what the scan gives`;
      if (user.op === "Reshape") {
        // A norm over parts of the channels: each part must hold whole groups, or lie within nothing that moves.
        const shape = concrete(sites.view, output)?.shape;
        const last = shape?.at(-1);
        if (last === undefined || (last !== scan.headDim && last % group !== 0))
          return "a norm over parts of the channels stands behind the scan";
        if (last === scan.headDim && shape?.at(-2) !== scan.heads) return "heads are taken apart behind the scan";
      } else if (user.op === "ReduceMean") {
        const shape = concrete(sites.view, value)?.shape;
        if (shape?.at(-1) === scan.headDim && scan.headDim !== inner)
          return "a norm of each head stands behind the scan";
        const reduced = concrete(sites.view, output)?.shape;
        if (reduced === null || reduced === undefined || shape?.slice(0, -1).some((size, at) => reduced[at] !== size))
          return "a mean over something other than channels stands behind the scan";
      } else if (!ELEMENTWISE.has(user.op)) return `${user.op} reads what the scan gives`;
      else if (user !== gain?.node && user !== gate?.node && !mixesNumbersOnly(sites, user, reached)) {
        return `${user.op} mixes what the scan gives with something else that has channels`;
      }
      if (!reached.has(output)) {
        reached.add(output);
        queue.push(output);
      }
    }
  }
  return reached.has(outProj.input) ? null : "out_proj does not follow the scan";
}

/** Are the other operands of an elementwise node numbers, or values computed from the same way? */
function mixesNumbersOnly(sites: Sites, node: Node, reached: ReadonlySet<string>): boolean {
  return node.inputs.every((input) => isNumber(sites, input) || comesFrom(sites, input, reached));
}

function isNumber(sites: Sites, name: string): boolean {
  const shape = concrete(sites.view, name)?.shape;
  return sites.free.has(name) && shape !== null && shape !== undefined && elementCount(shape) === 1;
}

/** Is a value computed from the way and numbers alone, such as the scale of the norm it is multiplied by? */
function comesFrom(sites: Sites, name: string, reached: ReadonlySet<string>): boolean {
  if (reached.has(name)) return true;
  const node = sites.index.producer.get(name);
  if (node === undefined || node.domain !== "") return false;
  const layout = node.op === "ReduceMean" || node.op === "Reshape";
  if (!layout && !ELEMENTWISE.has(node.op)) return false;
  return node.inputs.every(
    (input, at) => isNumber(sites, input) || (layout && at === 1) || comesFrom(sites, input, reached),
  );
}
