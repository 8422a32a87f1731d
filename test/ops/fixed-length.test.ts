/** Every function in models whose batch and length are numbers, as runtimes want them that fix free dimensions. */

import { describe, expect, test } from "vitest";
import { toNumbers } from "../../src/ir/tensor.js";
import { opNames, parseOpName } from "../../src/ops/names.js";
import { openSession } from "../../src/run/session.js";
import { convCase, joinedParts } from "./conv-case.js";
import { randomData, relativeError, runScan, type ScanSizes, scanModel } from "./scan-case.js";

const SCANS = opNames().flatMap((name) => {
  const spec = parseOpName(name);
  return spec?.kind === "scan" ? [{ name, spec }] : [];
});

describe.each([1, 5])("%i tokens, known when the model is loaded", (length) => {
  test.each(SCANS)("$name", async ({ spec }) => {
    const sizes: ScanSizes = {
      batch: 2,
      length,
      heads: 4,
      headDim: spec.family === "mamba1" ? 1 : 3,
      dState: 6,
      groups: spec.family === "mamba1" ? 1 : 2,
      chunkSize: 4,
      dtMin: Number.NEGATIVE_INFINITY,
      dtMax: Number.POSITIVE_INFINITY,
      replayLength: 3,
    };
    const data = randomData(spec, sizes, length);
    const [free, fixed] = await Promise.all(
      [false, true].map(async (known) => {
        const session = await openSession(scanModel(spec, sizes, known));
        const run = await runScan(session, spec, sizes, data);
        await session.release();
        return run;
      }),
    );
    expect(relativeError(fixed?.y ?? [], free?.y ?? [])).toBeLessThanOrEqual(1e-6);
    expect(fixed?.present.shape).toEqual(free?.present.shape);
  });

  test.each(["channels", "rows", "split"] as const)("a convolution of %s", async (layout) => {
    const sizes = { batch: 2, channels: 6, length, kernelSize: 4, stateWidth: 4 };
    const known = convCase(layout, "silu", sizes, length);
    const session = await openSession(known.model);
    const outputs = await session.run(known.feeds);
    await session.release();
    expect(relativeError(joinedParts(outputs, known, layout, sizes), known.expected.y)).toBeLessThanOrEqual(1e-6);
    expect(relativeError(toNumbers(outputs.get("present")!), known.expected.state)).toBe(0);
  });
});
