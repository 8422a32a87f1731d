import { afterEach, describe, expect, it, vi } from "vitest";
import { findOnnxRuntime, packageRoot } from "../../src/run/locate.js";
import { loadOrt } from "../../src/run/ort-capi.js";
import { SLOTS, TABLE_LENGTH } from "../../src/run/ort-capi-table.js";
import { countModelFile } from "../support/count-model.js";

afterEach(() => {
  vi.unstubAllEnvs();
  vi.resetModules();
});

describe("loadOrt", () => {
  it("loads the library that onnxruntime-node ships, once", async () => {
    const ort = await loadOrt();
    expect(ort.path).toContain("onnxruntime-node");
    expect(ort.version).toMatch(/^1\.\d+\.\d+$/);
    expect(await loadOrt()).toBe(ort);
  });

  it("turns a failed call into an error with ONNX Runtime's message", async () => {
    const { fn, env } = await loadOrt();
    const options = fn.CreateSessionOptions();
    expect(() => fn.CreateSession(env, "/no/such/model.onnx", options)).toThrow(
      expect.objectContaining({ code: "ort/CreateSession", message: expect.stringContaining("doesn't exist") }),
    );
    expect(() => fn.SetSessionGraphOptimizationLevel(options, 77)).toThrow(/graph_optimization_level/);
    fn.ReleaseSessionOptions(options);
  });

  it("says so when the library named by the environment is missing or is no ONNX Runtime", async () => {
    vi.stubEnv("MAMBAC_ONNXRUNTIME", "/no/such/libonnxruntime.so");
    vi.resetModules();
    const missing = await import("../../src/run/ort-capi.js");
    await expect(missing.loadOrt()).rejects.toMatchObject({ code: "ort/not-found" });
    vi.stubEnv("MAMBAC_ONNXRUNTIME", countModelFile());
    vi.resetModules();
    const wrong = await import("../../src/run/ort-capi.js");
    await expect(wrong.loadOrt()).rejects.toMatchObject({ code: "ort/load" });
  });
});

describe("the function table", () => {
  it("uses every slot once, inside the table of the oldest host", () => {
    const slots = Object.values(SLOTS).map(({ slot }) => slot);
    expect(new Set(slots).size).toBe(slots.length);
    expect(Math.max(...slots)).toBeLessThan(TABLE_LENGTH);
  });
});

describe("findOnnxRuntime", () => {
  it("knows the libraries of every platform onnxruntime-node ships for", () => {
    for (const [platform, arch, name] of [
      ["linux", "x64", "libonnxruntime.so.1"],
      ["linux", "arm64", "libonnxruntime.so.1"],
      ["darwin", "arm64", "libonnxruntime.1.dylib"],
      ["win32", "x64", "onnxruntime.dll"],
    ] as const) {
      expect(findOnnxRuntime(platform, arch, undefined).endsWith(name)).toBe(true);
    }
  });

  it("names the platform and the way out where there is none", () => {
    expect(() => findOnnxRuntime("freebsd", "x64", undefined)).toThrow(/freebsd\/x64; set MAMBAC_ONNXRUNTIME/);
    expect(() => findOnnxRuntime("linux", "riscv64", "")).toThrow(/linux\/riscv64/);
  });
});

describe("packageRoot", () => {
  it("is the folder of mambac's package.json", async () => {
    const manifest: unknown = (await import(`${packageRoot()}/package.json`, { with: { type: "json" } })).default;
    expect(manifest).toMatchObject({ name: "mambac" });
  });
});
