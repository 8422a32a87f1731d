/** Under which conditions a figure was measured, for reports that machines keep. */

import { arch, cpus, platform } from "node:os";
import type { LoadedPackage } from "../run/stateful.js";

export interface SessionRecord {
  readonly backend: LoadedPackage["backend"];
  /** The op library, or null for the functions in the model. */
  readonly library: string | null;
  readonly graphOptimization: "all";
  readonly executionMode: "sequential";
  readonly intraOpThreads: number;
  readonly interOpThreads: 1;
  readonly batch: number;
  readonly statesInPlace: number;
  readonly node: string;
  readonly platform: string;
  /** Model of the processor: kernels, and so the last digits, depend on it. */
  readonly processor: string;
}

/** How sessions are opened here, and where. */
export function sessionRecord(model: LoadedPackage, { threads }: { readonly threads: number }): SessionRecord {
  return {
    backend: model.backend,
    library: model.library,
    graphOptimization: "all",
    executionMode: "sequential",
    intraOpThreads: threads,
    interOpThreads: 1,
    batch: model.batch,
    statesInPlace: model.statesInPlace.size,
    node: process.version,
    platform: `${platform()}-${arch()}`,
    processor: cpus()[0]?.model.trim() ?? "unknown",
  };
}
