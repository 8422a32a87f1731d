/** Looks for selective scans in one reading of a graph after the other, and proves what it finds. */

import type { Node } from "../ir/graph.js";
import type { ExecuteGraph } from "./region.js";
import { type ProvedScan, proveScan } from "./scan-proof.js";
import { findScanRegions, type ScanRegion } from "./scan-region.js";
import { layerLabel } from "./semantic.js";
import type { Reading } from "./trials.js";

/** A scan, its layer, and the reading it was found in. */
export interface FoundScan {
  readonly scan: ProvedScan;
  readonly layer: string;
  readonly reading: Reading;
}

/** Something that looks like a scan and is none. */
export interface RefusedRegion {
  readonly layer: string;
  readonly anchor: Node;
  readonly reason: string;
  /** Smallest error of any assignment of roles; null when nothing could be run. */
  readonly error: number | null;
}

export interface ScanSearch {
  readonly proved: readonly FoundScan[];
  /** One for each anchor that no reading proved, with the smallest error of all. */
  readonly refused: readonly RefusedRegion[];
  /** Every candidate. */
  readonly regions: readonly ScanRegion[];
}

/** Searches the readings in order. What one of them proves, those after it leave alone. */
export async function searchScans(readings: readonly Reading[], execute: ExecuteGraph): Promise<ScanSearch> {
  const proved: FoundScan[] = [];
  const refused = new Map<Node, RefusedRegion>();
  const all: ScanRegion[] = [];
  const labels = new Set<string>();
  const taken = new Set<Node>();
  const refuse = (given: RefusedRegion): void => {
    const before = refused.get(given.anchor);
    if (before === undefined || (given.error ?? Infinity) < (before.error ?? Infinity))
      refused.set(given.anchor, given);
  };
  for (const reading of readings) {
    const { regions, misses } = findScanRegions(reading.tracer);
    all.push(...regions);
    for (const [at, { anchor, dt, reason }] of misses.entries()) {
      if (!taken.has(anchor))
        refuse({ layer: layerLabel([dt, anchor.name], at, new Set()), anchor, reason, error: null });
    }
    for (const [at, region] of regions.entries()) {
      const { anchor } = region;
      if (taken.has(anchor)) continue;
      const result = await proveScan(reading.tracer, region, reading.trials, execute);
      if (result.kind === "proved") {
        proved.push({ scan: result.scan, layer: layerOf(region, at, labels), reading });
        taken.add(anchor);
        continue;
      }
      const { reason, error } = result.refused;
      refuse({ layer: layerOf(region, at, readings.length > 1 ? new Set(labels) : labels), anchor, reason, error });
    }
  }
  return { proved, refused: [...refused.values()].filter(({ anchor }) => !taken.has(anchor)), regions: all };
}

function layerOf(region: ScanRegion, at: number, labels: Set<string>): string {
  const names = region.nodes.map((node) => node.name);
  return layerLabel([region.dt, region.dtBias ?? "", ...region.roots, ...region.exits, ...names], at, labels);
}
