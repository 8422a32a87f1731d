/** One replay operator's kernel against the float64 reference and the function of the same name. */

import fc from "fast-check";
import type { Tensor } from "../../src/ir/tensor.js";
import type { ScanSpec } from "../../src/ops/names.js";
import { openNativeSession } from "../../src/run/native-session.js";
import { compareReplay, type ReplayDifference, strayBytes, withExactSteps } from "../ops/replay-case.js";
import {
  randomData,
  referenceScan,
  relativeError,
  replayStates,
  type ScanData,
  type ScanSizes,
  scanFeeds,
  scanModel,
} from "../ops/scan-case.js";
import { aliasingFault, openBoth, outcomeOf, runAliased, tensorOf, tokenFeeds } from "./parity-cases.js";

/** The worst of many comparisons; `y` relative to the largest value expected. */
export interface ReplayWorst extends ReplayDifference {
  readonly y: number;
}

export interface ReplayReport {
  readonly op: string;
  readonly reference: ReplayWorst;
  readonly function: ReplayWorst;
  /** Tokens one by one in one buffer, each against the reference from the kernel's own last state. */
  readonly long: ReplayWorst;
  readonly calls: number;
  readonly tokens: number;
  readonly roundings: number;
  /** The first thing that is simply wrong, with the case that shows it; null for none. */
  readonly fault: string | null;
}

const NONE: ReplayWorst = {
  y: 0,
  codes: 0,
  different: 0,
  largest: 0,
  scaleUlps: 0,
  slots: 0,
  differentSlots: 0,
  halfUlps: 0,
  exponents: 0,
};
const FREE = { dtMin: Number.NEGATIVE_INFINITY, dtMax: Number.POSITIVE_INFINITY, chunkSize: 64 };
const RUNS = 12;
const TOKENS = 500;

function worse(a: ReplayWorst, b: ReplayWorst): ReplayWorst {
  return {
    y: Math.max(a.y, b.y),
    codes: a.codes + b.codes,
    different: a.different + b.different,
    largest: Math.max(a.largest, b.largest),
    scaleUlps: Math.max(a.scaleUlps, b.scaleUlps),
    slots: a.slots + b.slots,
    differentSlots: a.differentSlots + b.differentSlots,
    halfUlps: Math.max(a.halfUlps, b.halfUlps),
    exponents: Math.max(a.exponents, b.exponents),
  };
}

/** At most one rounding a call: after a second one, runs that a tie has parted go their own ways. */
const sizes: fc.Arbitrary<ScanSizes> = fc
  .record({
    batch: fc.integer({ min: 1, max: 3 }),
    replayLength: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constantFrom(16, 64)),
    share: fc.oneof(fc.constant(0), fc.double({ min: 0, max: 1, noNaN: true })),
    perGroup: fc.integer({ min: 1, max: 3 }),
    groups: fc.integer({ min: 1, max: 2 }),
    headDim: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constantFrom(16, 64)),
    pairs: fc.oneof(fc.integer({ min: 1, max: 35 }), fc.constantFrom(8, 32, 64)),
  })
  .map(({ perGroup, pairs, share, ...rest }) => ({
    ...rest,
    ...FREE,
    length: Math.max(1, Math.round(share * rest.replayLength)),
    heads: perGroup * rest.groups,
    dState: 2 * pairs,
  }));

/** y of the tokens that read the state as it came: those behind a rounding depend on the side a tie fell to. */
function unrounded(spec: ScanSpec, s: ScanSizes, past: Uint8Array, y: ArrayLike<number>): number[] {
  const rows = s.heads * s.headDim;
  return replayStates(spec, s, past).flatMap(({ tokens }, b) => {
    const count = Math.min(s.length, (s.replayLength ?? 0) - tokens.length);
    return Array.from(y).slice(b * s.length * rows, (b * s.length + count) * rows);
  });
}

function bytesOf(data: ScanData): Uint8Array {
  if (!(data.past instanceof Uint8Array)) throw new Error("a replay state is bytes");
  return data.past;
}

export async function checkReplay(op: string, spec: ScanSpec, library: string): Promise<ReplayReport> {
  let reference = NONE;
  let body = NONE;
  let calls = 0;
  const property = fc.asyncProperty(sizes, fc.nat(), async (s, seed) => {
    using sessions = await openBoth(scanModel(spec, s), library);
    const data = withExactSteps(randomData(spec, s, seed));
    const feeds = scanFeeds(spec, s, data);
    const outputs = sessions.kernel.run(feeds);
    const fault = aliasingFault(runAliased(sessions.kernel, feeds, outputs), outputs);
    if (fault !== null) throw new Error(fault);
    const compare = (wanted: { readonly y: ArrayLike<number>; readonly state: Uint8Array }): ReplayWorst => {
      const { y, state } = outcomeOf(spec, outputs);
      const stray = strayBytes(spec, s, Uint8Array.from(state));
      if (stray > 0) throw new Error(`${stray} bytes of free slots are not zero`);
      const past = bytesOf(data);
      return {
        ...compareReplay(spec, s, Uint8Array.from(state), wanted.state),
        y: relativeError(unrounded(spec, s, past, y), unrounded(spec, s, past, wanted.y)),
      };
    };
    const { y, packed } = referenceScan(spec, s, data);
    reference = worse(reference, compare({ y, state: packed ?? new Uint8Array() }));
    const other = outcomeOf(spec, sessions.body.run(feeds));
    body = worse(body, compare({ y: other.y, state: Uint8Array.from(other.state) }));
    calls += 1;
  });
  const details = await fc.check(property, { seed: 67, numRuns: RUNS, endOnFailure: true });
  const error = details.errorInstance instanceof Error ? details.errorInstance.message : "failed";
  const fault = details.failed ? `${error} with ${fc.stringify(details.counterexample)}` : null;
  const { long, roundings } = await stepLong(spec, library);
  return { op, reference, function: body, long, calls, tokens: TOKENS, roundings, fault };
}

async function stepLong(spec: ScanSpec, library: string): Promise<{ long: ReplayWorst; roundings: number }> {
  const one = { batch: 1, length: 1, heads: 2, headDim: 9, dState: 128, groups: 1, replayLength: 16, ...FREE };
  const full = { ...one, length: TOKENS };
  const data = withExactSteps(randomData(spec, full, 73));
  using session = await openNativeSession(scanModel(spec, one), { library });
  let past = bytesOf(data).map(() => 0);
  let long = NONE;
  let roundings = 0;
  for (let token = 0; token < TOKENS; token++) {
    const now: ScanData = { ...tokenFeeds(full, data, token).data, past };
    const outputs: ReadonlyMap<string, Tensor> = session.run(scanFeeds(spec, one, now));
    const { y, packed } = referenceScan(spec, one, now);
    const present = Uint8Array.from(tensorOf(outputs, "present").bytes());
    const found = { y: relativeError(outcomeOf(spec, outputs).y, y) };
    long = worse(long, { ...compareReplay(spec, one, present, packed ?? new Uint8Array()), ...found });
    if (replayStates(spec, one, present)[0]?.tokens.length === 0) roundings += 1;
    past = present;
  }
  return { long, roundings };
}
