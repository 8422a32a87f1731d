/** The kernels of replay scans inside ONNX Runtime: against the float64 reference, their functions, and themselves in place. */

import { describe, expect, test } from "vitest";
import { buildOps } from "../../scripts/build-ops.js";
import { type Tensor, toNumbers } from "../../src/ir/tensor.js";
import type { ScanSpec } from "../../src/ops/names.js";
import { ExecutionTrace } from "../../src/run/executed-ops.js";
import { type NativeSession, openNativeSession } from "../../src/run/native-session.js";
import { compareReplay, REPLAYS, strayBytes, withExactSteps } from "../ops/replay-case.js";
import {
  randomData,
  referenceScan,
  relativeError,
  replayStates,
  type ScanData,
  type ScanSizes,
  scanFeeds,
  scanModel,
  tokensOf,
} from "../ops/scan-case.js";
import { aliasingFault, runAliased, tensorOf } from "./parity-cases.js";

const built = await buildOps({ tests: true });
if (built.kind === "unavailable") process.stderr.write(`Replay kernels are not tested: ${built.reason}\n`);
const library = built.kind === "built" ? built.library : "";

const FREE = { dtMin: Number.NEGATIVE_INFINITY, dtMax: Number.POSITIVE_INFINITY, chunkSize: 64 };

/** Sizes with kernels of their own, and sizes that no vector fits. */
const SIZES: readonly ScanSizes[] = [
  { ...FREE, batch: 3, length: 1, heads: 4, headDim: 64, dState: 128, groups: 2, replayLength: 4 },
  { ...FREE, batch: 2, length: 37, heads: 4, headDim: 16, dState: 64, groups: 1, replayLength: 16 },
  { ...FREE, batch: 3, length: 23, heads: 6, headDim: 13, dState: 22, groups: 3, replayLength: 7 },
  { ...FREE, batch: 1, length: 9, heads: 3, headDim: 5, dState: 6, groups: 1, replayLength: 1 },
  { ...FREE, batch: 2, length: 70, heads: 2, headDim: 8, dState: 16, groups: 2, replayLength: 64 },
];

function squares(values: Iterable<number>): number {
  let sum = 0;
  for (const value of values) sum += value ** 2;
  return sum;
}

/** Every token of a case as a call of its own, each against the reference and the function from the same state. */
function checkTokens(kernel: NativeSession, body: NativeSession, spec: ScanSpec, s: ScanSizes, data: ScanData): Tensor {
  const one = { ...s, length: 1 };
  const tally = { codes: 0, different: 0 };
  let past = data.past as Uint8Array;
  let present: Tensor | null = null;
  for (let t = 0; t < s.length; t++) {
    const call = { ...tokensOf(spec, s, data, t, t + 1), past };
    const feeds = scanFeeds(spec, one, call);
    const outputs = kernel.run(feeds);
    expect(aliasingFault(runAliased(kernel, feeds, outputs), outputs)).toBeNull();
    present = tensorOf(outputs, "present");
    const bytes = Uint8Array.from(present.bytes());
    const wanted = referenceScan(spec, one, call);
    const portable = body.run(feeds);
    for (const [y, state] of [
      [wanted.y, wanted.packed ?? past],
      [toNumbers(tensorOf(portable, "y")), tensorOf(portable, "present").bytes()],
    ] as const) {
      expect(relativeError(toNumbers(tensorOf(outputs, "y")), y)).toBeLessThanOrEqual(1e-5);
      const found = compareReplay(spec, one, bytes, state);
      expect(found).toMatchObject({ differentSlots: 0 });
      expect(found.largest).toBeLessThanOrEqual(1);
      expect(found.scaleUlps).toBeLessThanOrEqual(2);
      tally.codes += found.codes;
      tally.different += found.different;
    }
    expect(strayBytes(spec, one, bytes)).toBe(0);
    past = bytes;
  }
  expect(tally.different / tally.codes).toBeLessThanOrEqual(1e-3);
  if (present === null) throw new Error("a case without tokens");
  return present;
}

describe.skipIf(built.kind !== "built")("replay kernels", () => {
  test.each(REPLAYS)("$name: tokens one by one, in place and not", async ({ name, spec }) => {
    using trace = new ExecutionTrace();
    for (const [index, s] of SIZES.entries()) {
      const model = scanModel(spec, s);
      using kernel = await openNativeSession(model, {
        library,
        threads: 2,
        ...(index === 0 ? { profilePrefix: trace.prefix } : {}),
      });
      using body = await openNativeSession(model);
      const several = { ...s, length: Math.max(s.length, 6) };
      checkTokens(kernel, body, spec, several, withExactSteps(randomData(spec, several, index)));
      if (index === 0) expect(trace.finish(kernel)).toContain(name);
    }
  });

  test.each(REPLAYS)("$name: many tokens in a call are those tokens one by one", async ({ spec }) => {
    const apart = { kernel: 0, body: 0, all: 0 };
    for (const [index, s] of SIZES.entries()) {
      const model = scanModel(spec, s);
      using kernel = await openNativeSession(model, { library });
      using body = await openNativeSession(model);
      const data = withExactSteps(randomData(spec, s, 10 + index));
      const feeds = scanFeeds(spec, s, data);
      const outputs = kernel.run(feeds);
      expect(aliasingFault(runAliased(kernel, feeds, outputs), outputs)).toBeNull();
      const wanted = referenceScan(spec, s, data);
      const y = toNumbers(tensorOf(outputs, "y"));
      apart.kernel += squares(y.map((value, i) => value - wanted.y[i]!));
      apart.body += squares(toNumbers(tensorOf(body.run(feeds), "y")).map((value, i) => value - wanted.y[i]!));
      apart.all += squares(wanted.y);
      const bytes = Uint8Array.from(tensorOf(outputs, "present").bytes());
      expect(compareReplay(spec, s, bytes, wanted.packed ?? bytes)).toMatchObject({ differentSlots: 0 });
      expect(strayBytes(spec, s, bytes)).toBe(0);
      // Up to the first rounding nothing is left to chance.
      const count = Math.max(...replayStates(spec, s, data.past as Uint8Array).map(({ tokens }) => tokens.length));
      const length = Math.min(s.length, (s.replayLength ?? 16) - count);
      const start = { ...tokensOf(spec, s, data, 0, length), past: data.past };
      const first = kernel.run(scanFeeds(spec, { ...s, length }, start));
      expect(
        relativeError(toNumbers(tensorOf(first, "y")), referenceScan(spec, { ...s, length }, start).y),
      ).toBeLessThanOrEqual(1e-5);
    }
    expect(Math.sqrt(apart.kernel / apart.all)).toBeLessThan(5e-4);
    expect(Math.sqrt(apart.body / apart.all)).toBeLessThan(5e-4);
  });
});
