import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { readModelBytes } from "../../src/onnx/read.js";
import { countCustomOps } from "../../src/run/executed-ops.js";
import { findOpsLibrary, opsLibraryName } from "../../src/run/locate.js";
import { openNativeSession } from "../../src/run/native-session.js";
import { loadPackage } from "../../src/run/stateful.js";
import { countLibrary, countModelFile, hasCompiler, scratchFolder } from "../support/count-model.js";

afterEach(() => {
  vi.unstubAllEnvs();
});

describe("without the op library", () => {
  it("runs the functions in the model and says so", async () => {
    await using model = await loadPackage(countModelFile(), { library: "none" });
    expect(model.library).toBeNull();
    expect(model.executedOps()).toEqual({ kernels: new Map(), functions: new Map([["CountTokens", 1]]) });
    expect(model.statesInPlace.size).toBe(0);
    const logits = await model.prefill([3, 3, 1]);
    expect(Array.from(logits.data.subarray(16))).toEqual([0, 1, 0, 2, 0, 0, 0, 0]);
  });

  it("gives a notice when the library was never built", async () => {
    vi.stubEnv("MAMBAC_OPS_LIBRARY", "none");
    const notices: string[] = [];
    await using model = await loadPackage(countModelFile(), { onNotice: (text) => notices.push(text) });
    expect(model.library).toBeNull();
    expect(notices).toEqual(["running the portable functions in the model: switched off by MAMBAC_OPS_LIBRARY"]);
  });

  it("refuses a library that was asked for and is not there", async () => {
    await expect(loadPackage(countModelFile(), { library: "/no/such/library.so" })).rejects.toMatchObject({
      code: "ops/not-found",
    });
    await expect(loadPackage(countModelFile(), { backend: "node", library: "/no/such.so" })).rejects.toMatchObject({
      code: "run/backend",
    });
  });
});

describe("finding the op library", () => {
  it("prefers the option, then the environment, then the build folder", () => {
    const file = countModelFile();
    expect(findOpsLibrary(file, "/elsewhere")).toEqual({ kind: "found", path: file });
    expect(findOpsLibrary("auto", file)).toEqual({ kind: "found", path: file });
    expect(findOpsLibrary("none", file).kind).toBe("absent");
    const root = scratchFolder();
    expect(findOpsLibrary("auto", undefined, root)).toMatchObject({
      kind: "absent",
      reason: expect.stringContaining(join("build", "ops", opsLibraryName())),
    });
    expect(() => findOpsLibrary("auto", "/elsewhere")).toThrow(/MAMBAC_OPS_LIBRARY names \/elsewhere/);
  });

  it("knows the file name of each platform", () => {
    expect(["linux", "darwin", "win32"].map((p) => opsLibraryName(p as NodeJS.Platform))).toEqual([
      "libmambac_ops.so",
      "libmambac_ops.dylib",
      "mambac_ops.dll",
    ]);
  });
});

describe.skipIf(!hasCompiler)("with an op library", () => {
  it("runs the kernel, in place, and reports it", async () => {
    await using model = await loadPackage(countModelFile(), { library: countLibrary(), batch: 2 });
    expect(model.backend).toBe("c-api");
    expect(model.executedOps()).toEqual({ kernels: new Map([["CountTokens", 1]]), functions: new Map() });
    expect([...model.statesInPlace]).toEqual(["past_counts"]);
    // 2000: the kernel saw one buffer as past and present. The traced run must have left no trace in the state.
    const first = await model.prefill([
      [3, 3],
      [1, 2],
    ]);
    expect(Array.from(first.data.subarray(8, 16))).toEqual([2000, 2000, 2000, 2002, 2000, 2000, 2000, 2000]);
    const second = await model.step([3, 1]);
    expect(second.data[3]).toBe(2003);
    expect(second.data[8 + 1]).toBe(2002);
    expect((await model.step([3, 1])).data[3]).toBe(2004);
  });

  it("finds it through the environment", async () => {
    vi.stubEnv("MAMBAC_OPS_LIBRARY", countLibrary());
    await using model = await loadPackage(countModelFile());
    expect(model.library).toBe(countLibrary());
  });

  it("leaves the operator in the optimised graph, where the function path inlines it", async () => {
    const remaining = async (library: string | null): Promise<number> => {
      const optimizedModelPath = join(scratchFolder(), "optimized.onnx");
      const options = library === null ? { optimizedModelPath } : { optimizedModelPath, library };
      (await openNativeSession(countModelFile(), options)).close();
      const { model } = readModelBytes(readFileSync(optimizedModelPath));
      return countCustomOps(model).get("CountTokens") ?? 0;
    };
    expect(await remaining(null)).toBe(0);
    expect(await remaining(countLibrary())).toBe(1);
  });

  it("does not load a model with a library whose types differ, and says what to do", async () => {
    const library = countLibrary("wrong-type");
    await expect(loadPackage(countModelFile(), { library })).rejects.toMatchObject({
      code: "ops/mismatch",
      message: expect.stringContaining("library: 'none'"),
    });
  });

  it("falls back to the functions, with a notice, when a library found by itself does not fit", async () => {
    vi.stubEnv("MAMBAC_OPS_LIBRARY", countLibrary("wrong-type"));
    const notices: string[] = [];
    await using model = await loadPackage(countModelFile(), { onNotice: (text) => notices.push(text) });
    expect(notices).toHaveLength(1);
    expect(notices[0]).toMatch(/does not fit this model/);
    expect(model.executedOps().functions.get("CountTokens")).toBe(1);
    expect((await model.step(5)).data[5]).toBe(1);
  });

  it("reports a file that is no op library", async () => {
    await expect(loadPackage(countModelFile(), { library: countModelFile() })).rejects.toMatchObject({
      code: "ops/mismatch",
    });
  });
});
