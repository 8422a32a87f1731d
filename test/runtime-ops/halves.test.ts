/**
 * Operators with float16 activations. Kernels compute as with float32 ones and round once, so what they give is known to
 * the bit: the float32 kernel's results on the same values, rounded to halves.
 */

import { describe, expect, test } from "vitest";
import { float16ToNumber, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { hadamardRotateReference } from "../../src/ops/hadamard-rotate.js";
import { opNames, parseOpName, type ScanSpec } from "../../src/ops/names.js";
import { ExecutionTrace } from "../../src/run/executed-ops.js";
import { type NativeSession, openNativeSession } from "../../src/run/native-session.js";
import { convCase } from "../ops/conv-case.js";
import { exactGate, GATES, gateFeeds, gateModel } from "../ops/gate-case.js";
import { halfError, halfFeeds, halfModel, halvesOf, nearestHalf, toHalves, widenedFeeds } from "../ops/half-case.js";
import { rotationCase, rotationFeeds, rotationModel } from "../ops/rotation-case.js";
import { randomData, referenceScan, type ScanData, type ScanSizes, scanFeeds, scanModel } from "../ops/scan-case.js";
import { isBuilt, open } from "./kernel-sessions.js";
import { aliasingFault, runAliased, tensorOf } from "./parity-cases.js";

const ALL: readonly (readonly [string, ScanSpec])[] = opNames().flatMap((name) => {
  const spec = parseOpName(name);
  return spec?.kind === "scan" ? [[name, spec] as const] : [];
});

const CONVS = opNames().flatMap((name) => {
  const spec = parseOpName(name);
  return spec?.kind === "conv" ? [[name, spec] as const] : [];
});

const FREE = { dtMin: Number.NEGATIVE_INFINITY, dtMax: Number.POSITIVE_INFINITY, chunkSize: 64 };
const SIZES: readonly ScanSizes[] = [
  { batch: 1, length: 1, heads: 2, headDim: 16, dState: 128, groups: 1, ...FREE },
  { batch: 2, length: 7, heads: 4, headDim: 12, dState: 20, groups: 2, ...FREE },
  { batch: 1, length: 40, heads: 3, headDim: 20, dState: 16, groups: 3, ...FREE },
];

/** Runs a model's half form and its float form on the same values; gives the half results, which must be the rounded ones. */
async function checked(
  model: Uint8Array,
  feeds: ReadonlyMap<string, Tensor>,
  profilePrefix?: string,
): Promise<{
  readonly session: NativeSession;
  readonly feeds: Map<string, Tensor>;
  readonly outputs: Map<string, Tensor>;
}> {
  const halves = halfFeeds(model, feeds);
  const session = await open(halfModel(model), 1, profilePrefix);
  const outputs = new Map(session.run(halves));
  const floats = (await open(model)).run(widenedFeeds(halves, feeds));
  for (const [name, tensor] of outputs) {
    const float = tensorOf(floats, name);
    const expected = tensor.dtype === "f16" && float.dtype === "f32" ? toHalves(float) : float;
    expect(Buffer.compare(tensor.bytes(), expected.bytes()), name).toBe(0);
  }
  const two = (await open(halfModel(model), 2)).run(halves);
  for (const [name, tensor] of outputs) expect(tensorOf(two, name).bytes()).toEqual(tensor.bytes());
  return { session, feeds: halves, outputs };
}

/** How far the function of a model's operator is from its kernel, over what one rounding of each explains. */
async function functionError(
  model: Uint8Array,
  { feeds, outputs }: { readonly feeds: ReadonlyMap<string, Tensor>; readonly outputs: ReadonlyMap<string, Tensor> },
  result: string,
): Promise<number> {
  const session = await openNativeSession(halfModel(model));
  const given = tensorOf(session.run(feeds), result);
  session.close();
  const kernel = tensorOf(outputs, result);
  expect([given.dtype, given.shape]).toEqual(["f16", kernel.shape]);
  return halfError(toNumbers(given), toNumbers(kernel), 2e-5) / 2;
}

describe.skipIf(!isBuilt)("float16 activations", () => {
  test.each(ALL)("%s gives the float32 kernel's results, rounded", async (name, spec) => {
    using trace = new ExecutionTrace();
    let first: NativeSession | null = null;
    for (const [seed, sizes] of SIZES.entries()) {
      const model = scanModel(spec, sizes);
      const data = randomData(spec, sizes, seed);
      const run = await checked(model, scanFeeds(spec, sizes, data), first === null ? trace.prefix : undefined);
      first ??= run.session;
      expect(tensorOf(run.outputs, "y").dtype).toBe("f16");
      expect(aliasingFault(runAliased(run.session, run.feeds, run.outputs), run.outputs)).toBeNull();
      if (spec.requantize !== "call" && sizes.length > 1) continue;
      expect(await functionError(model, run, "y")).toBeLessThanOrEqual(1);
      const exact = referenceScan(spec, sizes, roundedData(data, run.feeds));
      expect(halfError(toNumbers(tensorOf(run.outputs, "y")), exact.y, 2e-6)).toBeLessThanOrEqual(1);
    }
    if (first === null) throw new Error("no session");
    expect(trace.finish(first)).toContain(name);
  });

  test.each(CONVS)("%s, and its window of halves", async (name, { layout, activation }) => {
    using trace = new ExecutionTrace();
    let first: NativeSession | null = null;
    for (const [seed, [length, kernelSize, stateWidth]] of (
      [
        [1, 4, 3],
        [1, 4, 4],
        [50, 4, 3],
        [9, 3, 5],
      ] as const
    ).entries()) {
      const sizes = { batch: 2, channels: 70, length, kernelSize, stateWidth };
      const { model, feeds, parts } = convCase(layout, activation, sizes, seed);
      const run = await checked(model, feeds, first === null ? trace.prefix : undefined);
      first ??= run.session;
      expect(tensorOf(run.outputs, "present").dtype).toBe("f16");
      for (const part of parts) expect(await functionError(model, run, part)).toBeLessThanOrEqual(1);
      expect(await functionError(model, run, "present")).toBe(0);
      expect(aliasingFault(runAliased(run.session, run.feeds, run.outputs), run.outputs)).toBeNull();
    }
    if (first === null) throw new Error("no session");
    expect(trace.finish(first)).toContain(name);
  });

  test.each(GATES)("the gate %j", async (gate) => {
    const run = await checked(gateModel(gate, 4), gateFeeds(gate, 4, [2, 9], 5));
    expect(await functionError(gateModel(gate, 4), run, "out")).toBeLessThanOrEqual(1);
    const { outputs, feeds } = run;
    expect(halfError(toNumbers(tensorOf(outputs, "out")), exactGate(gate, feeds), 2e-6)).toBeLessThanOrEqual(1);
  });

  test.each([1536, 7, 160])("a rotation of %d channels", async (size) => {
    const rotation = rotationCase(size);
    const run = await checked(rotationModel(rotation, 3), rotationFeeds(rotation, [2, 9], 3));
    expect(await functionError(rotationModel(rotation, 3), run, "y")).toBeLessThanOrEqual(1);
    const { outputs, feeds } = run;
    const x = Float64Array.from(toNumbers(tensorOf(feeds, "x")));
    const exact = hadamardRotateReference({ ...rotation, x });
    expect(halfError(toNumbers(tensorOf(outputs, "y")), exact, 1e-5)).toBeLessThanOrEqual(1);
  });

  test("every half is read and written as it is: subnormals, infinities and all", async () => {
    const gate = { channels: 2 ** 16, norm: null };
    const bits = Uint16Array.from({ length: gate.channels }, (_, at) => at);
    const shape = [1, 1, gate.channels];
    // silu(64) is 64 to the last bit of a float32, so the result is 64 y, rounded once.
    const feeds = new Map([
      ["y", halvesOf(shape, bits)],
      [
        "z",
        halvesOf(
          shape,
          bits.map(() => 0x5400),
        ),
      ],
    ]);
    const session = await open(halfModel(gateModel(gate, null)));
    const out = toNumbers(tensorOf(session.run(feeds), "out"));
    const wrong = [...bits].filter((at) => !Object.is(out[at], nearestHalf(64 * float16ToNumber(at))));
    expect(wrong).toEqual([]);
  });

  test("activations of two types are refused with the operator's name", async () => {
    const [, spec] = ALL.find(([name]) => name === "Mamba2ScanH8Max") ?? [];
    const [, sizes] = SIZES;
    if (spec === undefined || sizes === undefined) throw new Error("no such scan");
    for (const only of [["x"], ["dt", "y"], ["x", "dt", "B", "y"]]) {
      await expect(open(halfModel(scanModel(spec, sizes), only))).rejects.toThrow("Mamba2ScanH8Max");
    }
    for (const parameter of ["A", "D", "dt_bias"]) {
      const model = halfModel(scanModel(spec, sizes), ["x", "dt", "B", "C", "y", parameter]);
      await expect(open(model)).rejects.toThrow(new RegExp(`float16.*parameter \\(${parameter}\\).*Mamba2ScanH8Max`));
    }
  });
});

/** The data of a case with the values its halves have. */
function roundedData(data: ScanData, feeds: ReadonlyMap<string, Tensor>): ScanData {
  const values = (name: string): Float32Array => Float32Array.from(toNumbers(tensorOf(feeds, name)));
  return { ...data, x: values("x"), dt: values("dt"), B: values("B"), C: values("C") };
}
