import { spawn } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { onnx } from "onnx-proto";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { typed } from "../../src/ir/builder.js";
import { attr, type Model, makeGraph, makeModel, makeNode } from "../../src/ir/graph.js";
import { f32Tensor, stringTensor, type Tensor, tensorFromBytes, tensorFromSource } from "../../src/ir/tensor.js";
import { readModel } from "../../src/onnx/read.js";
import { encodeModel, writeModel } from "../../src/onnx/write.js";
import { openSession } from "../../src/run/session.js";
import { arbitraryModel } from "../support/arbitrary-model.js";
import { FIXTURE_MODELS, fixture, plainModel } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-write-"));
afterAll(() => rmSync(root, { recursive: true }));

let folder = "";
let count = 0;
beforeEach(() => {
  count += 1;
  folder = join(root, String(count));
  mkdirSync(folder);
});

function modelWith(initializers: ReadonlyMap<string, Tensor>): Model {
  return makeModel(
    makeGraph({
      name: "g",
      inputs: [typed("x", "f32", [2])],
      outputs: [typed("y", "f32", [2])],
      nodes: [makeNode("Identity", ["x"], ["y"])],
      initializers,
    }),
    { opsets: new Map([["", 20]]) },
  );
}

function random(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + seed * 7 + (i >> 8)) & 255);
}

function u8(length: number, seed: number): Tensor {
  return tensorFromBytes("u8", [length], random(length, seed));
}

describe("writeModel", () => {
  test.each(["never", "always", "auto"] as const)(
    "every fixture survives with external data %s",
    async (externalData) => {
      const path = join(folder, "model.onnx");
      for (const name of FIXTURE_MODELS) {
        const { model } = readModel(fixture(name));
        const written = await writeModel(model, path, { externalData });
        const weights = [...model.graph.initializers.values()].reduce((sum, tensor) => sum + tensor.byteLength, 0);
        expect(written.data !== null, name).toBe(
          externalData === "always" || (externalData === "auto" && weights > 2 ** 20),
        );
        const back = readModel(path);
        expect(back.warnings).toEqual([]);
        expect(plainModel(back.model), name).toStrictEqual(plainModel(model));
      }
    },
  );

  test("random models survive in side files", async () => {
    const path = join(folder, "model.onnx");
    await fc.assert(
      fc.asyncProperty(arbitraryModel, async (model) => {
        const big = new Map([...model.graph.initializers, ["big", u8(1025, 1)] as const]);
        const larger = { ...model, graph: { ...model.graph, initializers: big } };
        await writeModel(larger, path, { externalData: "always" });
        expect(plainModel(readModel(path).model)).toStrictEqual(plainModel(larger));
      }),
      { seed: 4, numRuns: 40 },
    );
  });

  test("inline is what encodeModel gives", async () => {
    const { model } = readModel(fixture("forms/mamba_scripted_loop.onnx"));
    const path = join(folder, "model.onnx");
    const written = await writeModel(model, path);
    expect(written).toEqual({ model: { path, bytes: statSync(path).size }, data: null, companions: [] });
    expect(Buffer.compare(readFileSync(path), encodeModel(model))).toBe(0);
    expect(readdirSync(folder)).toEqual(["model.onnx"]);
  });

  test("places are aligned, small weights and strings stay inline, one tensor is stored once", async () => {
    const shared = u8(10_000, 3);
    const weights = new Map<string, Tensor>([
      ["small", u8(1023, 1)],
      ["line", u8(1500, 2)],
      ["page", shared],
      ["again", shared],
      ["last", u8(1024, 4)],
      ["text", stringTensor([1], [random(5000, 5)])],
    ]);
    const path = join(folder, "model.onnx");
    const written = await writeModel(modelWith(weights), path, { externalData: "always" });
    const proto = onnx.ModelProto.decode(readFileSync(path));
    const places = (proto.graph?.initializer ?? []).map((tensor) => [
      tensor.name,
      Object.fromEntries((tensor.externalData ?? []).map((entry) => [entry.key, entry.value])),
    ]);
    expect(places).toEqual([
      ["small", {}],
      ["line", { location: "model.onnx.data", offset: "0", length: "1500" }],
      ["page", { location: "model.onnx.data", offset: "4096", length: "10000" }],
      ["again", { location: "model.onnx.data", offset: "4096", length: "10000" }],
      ["last", { location: "model.onnx.data", offset: "14144", length: "1024" }],
      ["text", {}],
    ]);
    expect(written.data).toEqual({ path: `${path}.data`, bytes: 15168 });
    expect(statSync(`${path}.data`).size).toBe(15168);
    for (const [name, tensor] of readModel(path).model.graph.initializers) {
      if (tensor.strings === null)
        expect(Buffer.compare(tensor.bytes(), weights.get(name)?.bytes() ?? Buffer.alloc(0))).toBe(0);
    }
  });

  test("weights of subgraphs go to the side file too", async () => {
    const body = modelWith(new Map([["inner", u8(2000, 1)]])).graph;
    const inner = {
      ...body,
      inputs: [],
      outputs: [typed("z", "f32", [2])],
      nodes: [makeNode("Identity", ["x"], ["z"])],
    };
    const node = makeNode("If", ["c"], ["y"], new Map([["then_branch", attr.graph(inner)]]));
    const model = modelWith(new Map([["c", tensorFromBytes("bool", [], Uint8Array.of(1))]]));
    const path = join(folder, "model.onnx");
    const written = await writeModel({ ...model, graph: { ...model.graph, nodes: [node] } }, path, {
      externalData: "always",
    });
    expect(written.data?.bytes).toBe(2000);
    const attribute = readModel(path).model.graph.nodes[0]?.attributes.get("then_branch");
    expect(attribute?.kind === "graph" && attribute.value.initializers.get("inner")?.residence).toBe("file");
  });

  test("tensors in files and computed ones are streamed", async () => {
    const bytes = random(40 * 2 ** 20, 9);
    const asked: number[] = [];
    const source = {
      read(offset: number, length: number): Uint8Array {
        asked.push(length);
        return bytes.subarray(offset, offset + length);
      },
    };
    const weights = new Map([["w", tensorFromSource("u8", [bytes.byteLength], source, 0, "file")]]);
    const path = join(folder, "model.onnx");
    await writeModel(modelWith(weights), path);
    expect(Math.max(...asked)).toBeLessThanOrEqual(2 ** 24);
    expect(Buffer.compare(readFileSync(`${path}.data`), bytes)).toBe(0);
    asked.length = 0;
    const lazy = new Map([["w", tensorFromSource("u8", [bytes.byteLength], source, 0, "lazy")]]);
    await writeModel(modelWith(lazy), path);
    expect(asked).toEqual([bytes.byteLength]);
  });

  test("a model may be written over itself", async () => {
    const path = join(folder, "model.onnx");
    const weights = new Map([
      ["w", u8(5000, 1)],
      ["v", u8(6000, 2)],
    ]);
    await writeModel(modelWith(weights), path, { externalData: "always" });
    const { model } = readModel(path);
    const swapped = {
      ...model,
      graph: { ...model.graph, initializers: new Map([...model.graph.initializers].reverse()) },
    };
    await writeModel(swapped, path, { externalData: "always" });
    const back = readModel(path).model.graph.initializers;
    expect([...back.keys()]).toEqual(["v", "w"]);
    expect(Buffer.compare(back.get("v")?.bytes() ?? Buffer.alloc(0), random(6000, 2))).toBe(0);
    expect(readdirSync(folder).sort()).toEqual(["model.onnx", "model.onnx.data"]);
  });

  test("ONNX Runtime loads and runs both kinds of file", async () => {
    const { model } = readModel(fixture("forms/mamba_scripted_loop.onnx"));
    const feeds = new Map([["input_ids", tensorFromBytes("i64", [1, 3], new Uint8Array(24))]]);
    const results: Tensor[] = [];
    for (const externalData of ["never", "always"] as const) {
      const path = join(folder, `${externalData}.onnx`);
      await writeModel(model, path, { externalData });
      const session = await openSession(path);
      results.push(...(await session.run(feeds)).values());
      await session.release();
    }
    expect(results).toHaveLength(2);
    expect(results[0]?.byteLength).toBeGreaterThan(0);
    expect(results[1]?.bytes()).toEqual(results[0]?.bytes());
  });
});

describe("failures leave the folder as it was", () => {
  const failing = tensorFromSource(
    "u8",
    [4096],
    {
      read(): Uint8Array {
        throw new Error("the source broke");
      },
    },
    0,
    "lazy",
  );

  test("a folder that does not exist", async () => {
    const path = join(folder, "none", "model.onnx");
    await expect(writeModel(modelWith(new Map()), path)).rejects.toMatchObject({ code: "onnx/write", exitCode: 2 });
    expect(readdirSync(folder)).toEqual([]);
  });

  test("a target that is a folder", async () => {
    mkdirSync(join(folder, "model.onnx"));
    mkdirSync(join(folder, "other.onnx.data"));
    for (const name of ["model.onnx", "other.onnx"]) {
      await expect(writeModel(modelWith(new Map()), join(folder, name))).rejects.toMatchObject({ code: "onnx/write" });
    }
    expect(readdirSync(folder)).toEqual(["model.onnx", "other.onnx.data"]);
  });

  test.skipIf(process.getuid?.() === 0)("a folder without write permission", async () => {
    chmodSync(folder, 0o500);
    await expect(writeModel(modelWith(new Map()), join(folder, "model.onnx"))).rejects.toMatchObject({
      code: "onnx/write",
    });
    chmodSync(folder, 0o700);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("a weight that cannot be computed, with older files in place", async () => {
    const path = join(folder, "model.onnx");
    await writeModel(modelWith(new Map([["w", u8(5000, 1)]])), path, { externalData: "always" });
    const before = readdirSync(folder).map((name) => [name, readFileSync(join(folder, name)).toString("hex")]);
    const weights = new Map<string, Tensor>([
      ["ok", u8(9000, 1)],
      ["bad", failing],
    ]);
    for (const externalData of ["always", "never"] as const) {
      await expect(writeModel(modelWith(weights), path, { externalData })).rejects.toThrow("the source broke");
      expect(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name)).toString("hex")])).toEqual(
        before,
      );
    }
  });

  test("signals are watched only while writing", async () => {
    const before = process.listenerCount("SIGTERM");
    const writing = writeModel(modelWith(new Map([["w", f32Tensor([2], [1, 2])]])), join(folder, "model.onnx"));
    expect(process.listenerCount("SIGTERM")).toBe(before + 1);
    await writing;
    expect(process.listenerCount("SIGTERM")).toBe(before);
  });
});

describe("a killed process", () => {
  /** Runs the slow writer and sends `signal` after its fifth tensor. */
  function killed(
    path: string,
    signal: NodeJS.Signals,
    mode = "",
  ): Promise<{ code: number | null; signal: string | null }> {
    const child = spawn(process.execPath, ["--import", "tsx", join(import.meta.dirname, "slow-write.ts"), path, mode], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    let dots = 0;
    child.stdout.on("data", (chunk: Buffer) => {
      if (dots < 5 && dots + chunk.length >= 5) child.kill(signal);
      dots += chunk.length;
    });
    return new Promise((resolve) => {
      child.on("close", (code, by) => resolve({ code, signal: by }));
    });
  }

  test.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)("by %s leaves nothing", async (signal) => {
    expect(await killed(join(folder, "model.onnx"), signal)).toEqual({ code: null, signal });
    expect(readdirSync(folder)).toEqual([]);
  });

  test("by a signal it handles itself leaves nothing", async () => {
    expect(await killed(join(folder, "model.onnx"), "SIGTERM", "own-handler")).toEqual({ code: 130, signal: null });
    expect(readdirSync(folder)).toEqual([]);
  });

  test("by SIGKILL leaves no output, and older output as it was", async () => {
    const path = join(folder, "model.onnx");
    expect(await killed(path, "SIGKILL")).toEqual({ code: null, signal: "SIGKILL" });
    expect(readdirSync(folder).filter((name) => !/^\..*\.tmp$/.test(name))).toEqual([]);
    writeFileSync(path, "older");
    await killed(path, "SIGKILL");
    expect(readFileSync(path, "utf8")).toBe("older");
    expect(readdirSync(folder).filter((name) => !/^\..*\.tmp$/.test(name))).toEqual(["model.onnx"]);
  });
});
