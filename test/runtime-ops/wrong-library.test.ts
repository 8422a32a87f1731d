/** Op libraries that do not fit a model: what happens, and what mambac says about it. */

import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { loadPackage } from "../../src/run/stateful.js";
import { mambac } from "../support/command.js";
import { hasCompiler, scratchFolder } from "../support/count-model.js";
import { fixture } from "../support/fixture-models.js";
import { compileWith } from "../support/fixture-row.js";

if (!hasCompiler) process.stderr.write("wrong op libraries are not tested: there is no g++\n");

type Fault = "MISSING" | "VERSION" | "TYPE" | "ARITY" | "PROVIDER" | "TWICE" | "ENTRY" | "REFUSAL";

const folder = scratchFolder();
const model = join(folder, "model.onnx");
const SOURCE = fixture("hf/mamba2/prefill.onnx");
const SCAN = "Mamba2ScanH4Max";
const CONV = "CausalConvSiluSplit";
const GATE = "GatedRMSNorm";

/** Compiles the library with one thing wrong. */
function wrongLibrary(fault: Fault): string {
  const path = join(folder, `libwrong-${fault.toLowerCase()}.so`);
  const source = join(import.meta.dirname, "..", "fixtures", "ops", "wrong_library.cc");
  if (!existsSync(path)) {
    execFileSync("g++", ["-std=c++17", "-O0", "-fPIC", "-shared", `-DWRONG_${fault}`, source, "-o", path]);
  }
  return path;
}

async function logitsWithout(): Promise<Float32Array> {
  await using plain = await loadPackage(model, { library: "none" });
  return (await plain.prefill([1, 2, 3])).data.slice();
}

afterEach(() => {
  vi.unstubAllEnvs();
});

describe.skipIf(!hasCompiler)("a library", () => {
  beforeAll(async () => {
    await compileWith([SOURCE], model, { format: "h4", scale: "dsq-max", requantize: "call" });
  });

  test("that lacks an operator, as an older one does, leaves it to the function, with a notice", async () => {
    const notices: string[] = [];
    const library = wrongLibrary("MISSING");
    await using loaded = await loadPackage(model, { library, onNotice: (text) => notices.push(text) });
    const { kernels, functions } = loaded.executedOps();
    expect([...kernels.keys()]).toEqual([CONV]);
    expect([...functions.keys()]).toEqual([SCAN, GATE]);
    expect(notices).toEqual([expect.stringMatching(new RegExp(`has no kernel for ${SCAN}, ${GATE}: .*rebuild it`))]);
    // Only a kernel's state may be carried in place.
    expect(loaded.statesInPlace.size).toBe(kernels.get(CONV));
  });

  test("of a later version of the operators is not used at all", async () => {
    const notices: string[] = [];
    const library = wrongLibrary("VERSION");
    await using loaded = await loadPackage(model, { library, onNotice: (text) => notices.push(text) });
    expect(loaded.executedOps().kernels.size).toBe(0);
    expect(notices).toHaveLength(1);
    expect((await loaded.prefill([1, 2, 3])).data).toEqual(await logitsWithout());
  });

  test.each<[string, Fault, RegExp]>([
    ["without a kernel for the type of a state", "TYPE", new RegExp(`Type Error.*${SCAN}|${SCAN}.*[Tt]ype`, "s")],
    ["whose operator takes fewer inputs", "ARITY", new RegExp(`${SCAN}.*input|input.*${SCAN}`, "s")],
    ["with kernels for another device only", "PROVIDER", /Could not find an implementation/],
    ["that registers its domain twice", "TWICE", /already/i],
    ["without the entry point", "ENTRY", /RegisterCustomOps/],
    ["that refuses", "REFUSAL", /this library never works/],
  ])("%s is an error that names it and says what to do", async (_what, fault, reason) => {
    const library = wrongLibrary(fault);
    const failure: unknown = await loadPackage(model, { library }).catch((cause: unknown) => cause);
    expect(failure).toMatchObject({ code: "ops/mismatch", message: expect.stringMatching(reason) });
    expect(failure).toMatchObject({ message: expect.stringContaining(`The op library ${library} was registered`) });
    expect(failure).toMatchObject({ message: expect.stringContaining("library: 'none'") });
    // Nothing of the failure stays behind: the next session of this process loads.
    expect(await logitsWithout()).toHaveLength(3 * 96);
  });

  test.each<Fault>(["TYPE", "PROVIDER", "TWICE"])(
    "with fault %s that was only found, not asked for, is left aside with a notice",
    async (fault) => {
      vi.stubEnv("MAMBAC_OPS_LIBRARY", wrongLibrary(fault));
      const notices: string[] = [];
      await using loaded = await loadPackage(model, { onNotice: (text) => notices.push(text) });
      expect(loaded.library).toBeNull();
      expect(notices).toEqual([expect.stringContaining("does not fit this model")]);
      expect((await loaded.prefill([1, 2, 3])).data).toEqual(await logitsWithout());
    },
  );

  test("that silently did not take fails a benchmark", async () => {
    const library = wrongLibrary("MISSING");
    const argv = ["--batch", "1", "--threads", "1", "--prefill", "4", "--steps", "2", "--rounds", "1", "--quiet"];
    const { code, err } = await mambac("bench", model, "--library", library, ...argv);
    expect(code).toBe(4);
    expect(err).toMatch(new RegExp(`${GATE}, ${SCAN} ran as functions of the model.*build it again`));
  });
});
