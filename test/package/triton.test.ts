import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { f32Tensor, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { readModel } from "../../src/onnx/read.js";
import { tritonPackage } from "../../src/package/triton.js";
import { openSession } from "../../src/run/session.js";
import { readSignature, type Signature } from "../../src/run/signature.js";
import { loadPackage } from "../../src/run/stateful.js";
import { documentIn, mambac } from "../support/command.js";
import { compileDemo, done, scratch } from "../support/demo-packages.js";
import { fixture } from "../support/fixture-models.js";
import { type Message, messages, one, readPbtxt, word } from "../support/pbtxt.js";

const root = scratch();
afterAll(() => rmSync(root, { recursive: true }));

const REPOSITORY = join(root, "models");
const PROMPT = "And it came to pass";

/** Element types of ONNX, by Triton's names. */
const DTYPES: Readonly<Record<string, string>> = {
  TYPE_FP32: "f32",
  TYPE_FP16: "f16",
  TYPE_UINT8: "u8",
  TYPE_INT8: "i8",
  TYPE_INT64: "i64",
  TYPE_INT32: "i32",
};

const configOf = (name: string): string => readFileSync(join(REPOSITORY, name, "config.pbtxt"), "utf8");

beforeAll(async () => {
  const [h4, f32, f16] = [
    await compileDemo(root, "demo", "--state", "h4"),
    await compileDemo(root, "demo.f32.mambac", "--state", "f32", "--external-data", "never"),
    await compileDemo(root, "half", "--state", "f16", "--float", "f16"),
  ];
  for (const model of [h4, f32, f16]) await done("package", model, "--triton", REPOSITORY, "-q");
}, 120_000);

describe("config.pbtxt", () => {
  test("of the demo is the one on file", () => {
    const golden = join(import.meta.dirname, "..", "fixtures", "package", "demo.config.pbtxt");
    expect(configOf("demo")).toBe(readFileSync(golden, "utf8"));
  });

  test.each(["demo", "demo.f32", "half"])("%s: names, types and dimensions are those of the graph", (name) => {
    const config = readPbtxt(configOf(name));
    const { graph } = readModel(join(REPOSITORY, name, "1", "model.onnx")).model;
    expect([one(config, "name"), one(config, "backend")]).toEqual([name, "onnxruntime"]);
    expect(one(config, "max_batch_size")).toBeGreaterThan(0);
    const batching = messages(config, "sequence_batching")[0] ?? expect.fail("no sequence_batching");
    // The graph has no inputs for controls, and Triton refuses a control that no input takes.
    expect(batching.fields.has("control_input")).toBe(false);
    const states = messages(batching, "state");
    const inputs = [...messages(config, "input").map(entry("name")), ...states.map(entry("input_name"))];
    const outputs = [...messages(config, "output").map(entry("name")), ...states.map(entry("output_name"))];
    // ONNX Runtime's backend counts: every input is an input or a state.
    for (const [entries, values] of [
      [inputs, graph.inputs],
      [outputs, graph.outputs],
    ] as const) {
      const expected = values.map(({ name: value, type }) => {
        const { dtype, shape } = type?.kind === "tensor" ? type : expect.fail(value);
        return { name: value, dtype, dims: (shape ?? []).slice(1).map((dim) => (typeof dim === "number" ? dim : -1)) };
      });
      expect([...entries].sort(byName)).toEqual(expected.sort(byName));
    }
    for (const state of states) {
      const zero = messages(state, "initial_state")[0] ?? expect.fail("no initial state");
      expect(zero.fields.get("dims")).toEqual(state.fields.get("dims"));
      expect([one(zero, "data_type"), one(zero, "zero_data")]).toEqual([one(state, "data_type"), true]);
      expect(one(zero, "name")).not.toBe("");
    }
  });

  test("a package is the same bytes every time", async () => {
    const again = join(root, "again");
    await done("package", join(root, "demo.onnx"), "--triton", again, "-q");
    for (const file of ["config.pbtxt", "1/model.onnx", "1/model.onnx.data"]) {
      const [first, second] = [REPOSITORY, again].map((folder) => readFileSync(join(folder, "demo", file)));
      expect(second?.equals(first ?? Buffer.alloc(0)), file).toBe(true);
    }
  });

  test("a model that is one file stays the bytes it was", () => {
    const packaged = readFileSync(join(REPOSITORY, "demo.f32", "1", "model.onnx"));
    expect(packaged.equals(readFileSync(join(root, "demo.f32.mambac.onnx")))).toBe(true);
  });

  test("a library is named by its path in the repository", async () => {
    const library = join(root, "libops.so");
    rmSync(library, { force: true });
    await compileDemo(root, "lib", "--state", "h4");
    const missing = await mambac("package", join(root, "lib.onnx"), "--triton", REPOSITORY, "--library", library);
    expect(missing).toMatchObject({ code: 2 });
    const file = join(root, "half.onnx");
    const notes = await done("package", join(root, "lib.onnx"), "--triton", REPOSITORY, "--library", file, "-q");
    expect(notes).toContain("start it in the repository");
    const operations = messages(readPbtxt(configOf("lib")), "model_operations")[0] ?? expect.fail();
    expect(one(operations, "op_library_filename")).toBe("lib/1/half.onnx");
    expect(readFileSync(join(REPOSITORY, "lib", "1", "half.onnx")).equals(readFileSync(file))).toBe(true);
  });
});

describe("a packaged model, driven as its configuration says", () => {
  test.each(["demo", "demo.f32"])(
    "%s: gives the logits of mambac and the text of generate",
    async (name) => {
      const config = readPbtxt(configOf(name));
      const source = join(root, name === "demo" ? "demo.onnx" : "demo.f32.mambac.onnx");
      await using model = await loadPackage(source, { library: "none" });
      const server = await Sequence.start(config, join(REPOSITORY, name, "1", "model.onnx"));
      const prompt = [...Buffer.from(PROMPT)];
      const said: number[] = [];
      let mine = await server.request(prompt);
      let theirs = Array.from((await model.prefill(prompt)).data).slice(-256);
      for (let at = 0; at < 24; at++) {
        expect(mine).toEqual(theirs);
        const token = mine.indexOf(Math.max(...mine));
        said.push(token);
        mine = await server.request([token]);
        theirs = Array.from((await model.step(token)).data);
      }
      await server.end();
      const argv = ["generate", source, "--prompt", PROMPT, "--max-tokens", "24", "--library", "none", "-q", "--json"];
      expect(documentIn(await mambac(...argv))["tokens"]).toEqual(said);
    },
    60_000,
  );
});

describe("refusals", () => {
  test("a hybrid, whose caches start empty", async () => {
    const hybrid = join(root, "hybrid.onnx");
    await done("compile", fixture("hf/granitemoehybrid"), "-o", hybrid, "-q");
    const result = await mambac("package", hybrid, "--triton", REPOSITORY);
    expect(result).toMatchObject({ code: 4, out: "" });
    expect(result.err).toMatch(/no package for Triton: the attention cache .*\.key.* starts empty/);
  }, 60_000);

  test("batches that are fixed in places, and types that Triton does not know", () => {
    const { model } = readModel(join(root, "demo.onnx"));
    const signature = readSignature(model);
    const write = (change: Partial<Signature>): string =>
      tritonPackage({
        model,
        signature: { ...signature, ...change },
        name: 'a"b',
        external: false,
        library: null,
        sideFiles: null,
      }).texts[0]?.text ?? "";
    const states = signature.states.map((state) => ({ ...state, shape: [1, ...state.shape.slice(1)] }));
    expect(() => write({ states })).toThrow(/batch is fixed in some inputs/);
    const [tokens, logits] = [
      { ...signature.tokens, batch: 1 },
      { ...signature.logits, shape: [1, ...signature.logits.shape.slice(1)] },
    ];
    const fixed = readPbtxt(write({ states, tokens, logits }));
    expect([one(fixed, "max_batch_size"), one(fixed, "name")]).toEqual([0, 'a"b']);
    expect(messages(fixed, "input")[0]?.fields.get("dims")).toEqual([1, -1]);
    expect(() => write({ logits: { ...signature.logits, dtype: "bf16" } })).toThrow(/type bf16, which Triton/);
    expect(() => write({ states: [] })).toThrow(/no state to carry/);
    const loose = signature.states.map((state) => ({ ...state, shape: ["batch_size", "n", 3] }));
    expect(() => write({ states: loose })).toThrow(/dimensions that are not fixed: batch_size, n, 3/);
    expect(() => write({ auxiliaries: [{ name: "cache_position", dtype: "i64", rank: 1 }] })).toThrow(/no batch axis/);
  });
});

/** What Triton does for one sequence: zeros first, then the output of a request into the next. */
class Sequence {
  readonly #config: Message;
  readonly #session: Awaited<ReturnType<typeof openSession>>;
  readonly #states: Map<string, Tensor>;

  private constructor(config: Message, session: Awaited<ReturnType<typeof openSession>>) {
    this.#config = config;
    this.#session = session;
    this.#states = new Map(
      this.#pairs().map((state) => {
        const zero = messages(state, "initial_state")[0] ?? expect.fail();
        const dims = [1, ...(zero.fields.get("dims") ?? []).map(Number)];
        const dtype = DTYPES[word(zero, "data_type")] ?? expect.fail();
        return [word(state, "input_name"), zeros(dtype, dims)];
      }),
    );
  }

  static async start(config: Message, model: string): Promise<Sequence> {
    return new Sequence(config, await openSession(model, { optimization: "all" }));
  }

  /** Logits of the last token. */
  async request(tokens: readonly number[]): Promise<number[]> {
    const input = messages(this.#config, "input")[0] ?? expect.fail();
    const output = messages(this.#config, "output")[0] ?? expect.fail();
    const ids = new Uint8Array(BigInt64Array.from(tokens, BigInt).buffer);
    const feeds = new Map(this.#states).set(word(input, "name"), tensorFromBytes("i64", [1, tokens.length], ids));
    const results = await this.#session.run(feeds);
    const result = (name: string): Tensor => results.get(name) ?? expect.fail(name);
    for (const state of this.#pairs()) {
      this.#states.set(word(state, "input_name"), result(word(state, "output_name")));
    }
    const size = Number(output.fields.get("dims")?.at(-1));
    return Array.from(toNumbers(result(word(output, "name")))).slice(-size);
  }

  end(): Promise<void> {
    return this.#session.release();
  }

  #pairs(): Message[] {
    return messages(messages(this.#config, "sequence_batching")[0] ?? expect.fail(), "state");
  }
}

function zeros(dtype: string, dims: readonly number[]): Tensor {
  const count = dims.reduce((product, dim) => product * dim, 1);
  return dtype === "f32"
    ? f32Tensor(dims, new Float32Array(count))
    : tensorFromBytes("u8", dims, new Uint8Array(count));
}

interface Entry {
  readonly name: string;
  readonly dtype: string;
  readonly dims: readonly unknown[];
}

function entry(key: string): (message: Message) => Entry {
  return (message) => ({
    name: word(message, key),
    dtype: DTYPES[word(message, "data_type")] ?? expect.fail(word(message, "data_type")),
    dims: message.fields.get("dims") ?? [],
  });
}

function byName(a: { readonly name: string }, b: { readonly name: string }): number {
  return a.name < b.name ? -1 : 1;
}
