import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { toNumbers } from "../../src/ir/tensor.js";
import { readModel } from "../../src/onnx/read.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-cli-"));
afterAll(() => rmSync(root, { recursive: true }));

let folder = "";
let count = 0;
beforeEach(() => {
  count += 1;
  folder = join(root, String(count));
  mkdirSync(folder);
});

const PREFILL = fixture("hf/mamba2/prefill.onnx");
const DECODE = fixture("hf/mamba2/decode.onnx");
const PAIR = fixture("hf/mamba2");

/** Names of the scans of a written file, and of its state inputs. */
function scansIn(path: string): { readonly ops: string[]; readonly inputs: string[] } {
  const { graph } = readModel(path).model;
  const ops = graph.nodes.filter((node) => node.domain !== "").map((node) => `${node.domain}.${node.op}`);
  return { ops: [...new Set(ops)].sort(), inputs: graph.inputs.map(({ name }) => name) };
}

describe("what is compiled", () => {
  test("one graph, with the table of layers on stdout", async () => {
    const out = join(folder, "out.onnx");
    const result = await mambac("compile", PREFILL, "-o", out);
    expect(result.code).toBe(0);
    expect(result.out).toMatch(/layers\.0 +scan +mamba2 chunked +\d\.\de-\d +H=4 P=16 N=8 G=1 .* 2\.05 kB -> 704 B/);
    expect(result.out).toContain("state    h8 dsq-max requantize=call");
    expect(result.out).toContain(`written  ${out} (`);
    expect(scansIn(out).ops).toEqual([
      "com.mambac.CausalConvSiluSplit",
      "com.mambac.GatedRMSNorm",
      "com.mambac.Mamba2ScanH8Max",
    ]);
  });

  test("a pair in either order and a folder give the same bytes", async () => {
    const bytes: Buffer[] = [];
    for (const inputs of [[PREFILL, DECODE], [DECODE, PREFILL], [PAIR]]) {
      const out = join(folder, "out.onnx");
      expect((await mambac("compile", ...inputs, "--output", out, "-q")).code).toBe(0);
      bytes.push(readFileSync(out));
    }
    expect(bytes[1]?.equals(bytes[0] ?? Buffer.alloc(0))).toBe(true);
    expect(bytes[2]?.equals(bytes[0] ?? Buffer.alloc(0))).toBe(true);
  });

  test("without an output the file is written beside the source, and never taken for a source", async () => {
    copyFileSync(PREFILL, join(folder, "tiny_prefill.onnx"));
    expect((await mambac("compile", join(folder, "tiny_prefill.onnx"), "-q")).code).toBe(0);
    copyFileSync(DECODE, join(folder, "tiny_decode.onnx"));
    expect((await mambac("compile", folder, "-q")).code).toBe(0);
    const written = ["tiny.mambac.onnx", "tiny_prefill.mambac.onnx"];
    expect(readdirSync(folder).sort()).toEqual([...written, "tiny_decode.onnx", "tiny_prefill.onnx"].sort());
    // Compiled files in the folder change nothing.
    expect((await mambac("compile", folder, "-q")).code).toBe(0);
  });

  test("the source is never overwritten", async () => {
    const path = join(folder, "model.onnx");
    copyFileSync(PREFILL, path);
    const result = await mambac("compile", path, "-o", join(folder, ".", "model.onnx"));
    expect(result).toMatchObject({ code: 2, out: "" });
    expect(result.err).toContain("is also the source");
    expect(readFileSync(path).equals(readFileSync(PREFILL))).toBe(true);
  });
});

describe("how the state is kept", () => {
  test.each([
    [["--state", "f32"], "com.mambac.Mamba2ScanF32"],
    [["--state", "f16"], "com.mambac.Mamba2ScanF16"],
    [["--state", "h4"], "com.mambac.Mamba2ScanH4Max"],
    [["--state=h8", "--state-scale", "dsq"], "com.mambac.Mamba2ScanH8"],
    [["--state", "h4", "--state_scale=dsq", "--requantize", "token"], "com.mambac.Mamba2ScanH4Token"],
    [["--state", "h8", "--requantize", "replay"], "com.mambac.Mamba2ScanH8MaxReplay"],
    [
      ["--state", "h4", "--state-scale=dsq", "--requantize=replay", "--replay_length", "8"],
      "com.mambac.Mamba2ScanH4Replay",
    ],
    [["--state", "f16", "--requantize", "replay"], "com.mambac.Mamba2ScanF16"],
    [["--state", "f32", "--scan", "linear-attention"], "com.microsoft.LinearAttention"],
    [["--state", "f32", "--scan=mambac"], "com.mambac.Mamba2ScanF32"],
  ])("%j", async (flags, op) => {
    const out = join(folder, "out.onnx");
    expect((await mambac("compile", PREFILL, "-o", out, "-q", ...flags)).code).toBe(0);
    expect(scansIn(out).ops).toContain(op);
  });

  test("replay is in the table, the metadata and the file, and in inspect", async () => {
    const out = join(folder, "out.onnx");
    const flags = ["--state", "h4", "--requantize", "replay", "--replay-length", "3"];
    const result = await mambac("compile", PREFILL, "-o", out, ...flags);
    expect(result.out).toMatch(/layers\.0 +scan .* G=1 R=3 +\S+ u8\[batch_size,960\] +2\.05 kB -> 960 B/);
    expect(result.out).toContain("state    h4 dsq-max requantize=replay R=3,");
    const { metadata, graph } = readModel(out).model;
    expect(metadata.get("mambac.state")).toBe("h4 dsq-max requantize=replay R=3");
    const scan = graph.nodes.find(({ op }) => op === "Mamba2ScanH4MaxReplay");
    expect(scan?.attributes.get("replay_length")).toMatchObject({ value: 3n });
    expect((await mambac("inspect", out)).out).toMatch(/Mamba2ScanH4MaxReplay .* G=1 R=3 +\S+ u8\[\w+,960\]/);
    expect((await mambac("inspect", PREFILL, ...flags)).out).toMatch(/u8\[\w+,960\]/);
  });

  test("static scales are calibrated, and the state is codes alone", async () => {
    const out = join(folder, "out.onnx");
    const ids = join(folder, "ids.jsonl");
    writeFileSync(ids, `${JSON.stringify({ input_ids: Array.from({ length: 400 }, (_, i) => (i * 37) % 64) })}\n`);
    const flags = ["--state", "h4", "--state-scale", "static"];
    const data = ["--calib", ids, "--num-samples", "2", "--seq-len", "40"];
    const result = await mambac("compile", PREFILL, "-o", out, ...flags, ...data);
    expect(result).toMatchObject({ code: 0 });
    expect(result.out).toMatch(/layers\.0 +scan .* u8\[batch_size,4,64\] +2\.05 kB -> 256 B/);
    expect(readModel(out).model.metadata.get("mambac.state")).toBe("h4 static requantize=call");
    expect(scansIn(out).ops).toContain("com.mambac.Mamba2ScanH4Static");
    const { initializers } = readModel(out).model.graph;
    const rows = [...initializers].filter(([name]) => name.endsWith("row_step")).map(([, tensor]) => toNumbers(tensor));
    expect(rows).toHaveLength(2);
    // Measured, so no two alike, and neither zero nor without bounds.
    for (const steps of rows) {
      expect(new Set(steps).size).toBeGreaterThan(60);
      expect(steps.every((step) => step > 1e-9 && step < 1e3)).toBe(true);
    }
    const without = await mambac("compile", PREFILL, "-o", out, ...flags);
    expect(without.code).toBe(5);
    expect(without.err).toContain("give --calib");
    const replay = await mambac("compile", PREFILL, "-o", out, ...flags, "--requantize", "replay");
    expect(replay.code).toBe(2);
    expect(replay.err).toContain("a replay state measures its scales");
  });

  test("where there is no replay the state is rounded once a call, and that is said", async () => {
    const out = join(folder, "out.onnx");
    for (const [source, state, why] of [
      [PREFILL, "f16", "a state kept as f16 has none"],
      [fixture("hf/mamba/prefill.onnx"), "h8", "no layer is Mamba-2"],
    ] as const) {
      const result = await mambac("compile", source, "-o", out, "--state", state, "--requantize", "replay");
      expect(result).toMatchObject({ code: 0 });
      expect(result.out + result.err).toContain(`there is no replay here, since ${why}`);
      expect(readModel(out).model.metadata.get("mambac.state")).toMatch(/requantize=call$/);
    }
  });

  test.each([
    [["--requantize", "replay", "--replay-length", "0"], /1 or more/],
    [["--requantize", "replay", "--replay-length", "65"], /1 to 64/],
    [["--replay-length", "8"], /says nothing without --requantize replay/],
    [["--qdq-profile", "qnn"], /goes with --recipe/],
    [["--qdq-profile", "qnn", "--recipe", "rtn-w4a16"], /i4:g128 does not fit the profile qnn: .*i8:channel/],
  ])("%j is refused", async (flags, message) => {
    const result = await mambac("compile", PREFILL, "-o", join(folder, "out.onnx"), "--state", "h4", ...flags);
    expect(result.code).toBe(2);
    expect(result.err).toMatch(message);
    expect(readdirSync(folder)).toEqual([]);
  });

  test.each([
    ["hf", "input.cache_params.layers.1.recurrent_states.0"],
    ["genai", "past_key_values.1.recurrent_state"],
    ["transformersjs", "past_ssm.1"],
    ["mobius", "past_states.1.ssm_state"],
  ])("--state-names %s", async (style, input) => {
    const out = join(folder, "out.onnx");
    expect((await mambac("compile", PREFILL, "-o", out, "-q", "--state_names", style)).code).toBe(0);
    expect(scansIn(out).inputs).toContain(input);
  });

  test("linear-attention refuses packed states and Mamba-1", async () => {
    const out = join(folder, "out.onnx");
    for (const [input, state] of [
      [PREFILL, "h8"],
      [fixture("hf/mamba/prefill.onnx"), "f32"],
    ] as const) {
      const result = await mambac("compile", input, "-o", out, "--scan", "linear-attention", "--state", state);
      expect(result.code).toBe(4);
    }
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe("how it is written", () => {
  test("--external-data", async () => {
    for (const [choice, names] of [
      ["never", ["out.onnx"]],
      ["auto", ["out.onnx"]],
      ["always", ["out.onnx", "out.onnx.data"]],
    ] as const) {
      expect(
        (await mambac("compile", PREFILL, "-o", join(folder, "out.onnx"), "--external-data", choice, "-q")).code,
      ).toBe(0);
      expect(readdirSync(folder)).toEqual(names);
    }
  });

  test("--dry-run writes nothing and tells the very sizes a real run has", async () => {
    const out = join(folder, "out.onnx");
    for (const external of ["never", "always"]) {
      const flags = ["compile", PAIR, "-o", out, "--json", "--external-data", external];
      const dry = documentIn(await mambac(...flags, "--dry-run"));
      expect(readdirSync(folder)).toEqual([]);
      expect(dry["peakMemoryBytes"]).toBeGreaterThan(2 ** 20);
      const real = documentIn(await mambac(...flags));
      expect(dry["files"]).toEqual(real["files"]);
      expect(dry["layers"]).toEqual(real["layers"]);
      for (const name of readdirSync(folder)) rmSync(join(folder, name));
    }
    const human = await mambac("compile", PREFILL, "-o", out, "--dry-run");
    expect(human.out).toMatch(/would write +.*out\.onnx \(\d+ kB\)\npeak memory +about \d+/);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("the same input gives the same bytes, whatever the number of threads", async () => {
    const files: Buffer[] = [];
    for (const threads of ["1", "1", "2"]) {
      const out = join(folder, `out${files.length}`, "out.onnx");
      mkdirSync(join(folder, `out${files.length}`));
      const result = await mambac("compile", PAIR, "-o", out, "--threads", threads, "--external-data", "always", "-q");
      expect(result.code).toBe(0);
      files.push(Buffer.concat([readFileSync(out), readFileSync(`${out}.data`)]));
    }
    expect(files[1]?.equals(files[0] ?? Buffer.alloc(0))).toBe(true);
    expect(files[2]?.equals(files[0] ?? Buffer.alloc(0))).toBe(true);
  });

  test("an output that cannot be written", async () => {
    const missing = await mambac("compile", PREFILL, "-q", "-o", join(folder, "no", "out.onnx"));
    expect(missing).toMatchObject({ code: 2, out: "" });
    expect(missing.err).toMatch(/^mambac: cannot write .*out\.onnx: there is no folder [^\n]*\n$/);
    const readonly = await mambac("compile", PREFILL, "-q", "-o", "/proc/out.onnx");
    expect(readonly.code).toBe(2);
    expect(readonly.err).toMatch(/^mambac: cannot write \/proc\/out\.onnx[^\n]*\n$/);
    const taken = await mambac("compile", PREFILL, "-o", folder);
    expect(taken.code).toBe(2);
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe("looking inside", () => {
  const out = (): string => join(folder, "out.onnx");

  test("--json is one document and nothing else, whatever else is asked for", async () => {
    const flags = ["--json", "--timing", "--print-ir", "all", "--state", "h4", "--threads", "2"];
    const result = await mambac("compile", PAIR, "-o", out(), ...flags);
    expect(result.code).toBe(0);
    const document = documentIn(result);
    expect(document).toMatchObject({
      command: "compile",
      dryRun: false,
      inputs: [
        { path: PREFILL, role: "prefill" },
        { path: DECODE, role: "decode" },
      ],
      state: { format: "h4", scale: "dsq-max", requantize: "call" },
      totals: { stateBytesBefore: 6656, stateBytesAfter: 3456 },
      warnings: [],
    });
    expect(document["layers"]).toHaveLength(4);
    expect(document["passes"]).toContainEqual(
      expect.objectContaining({ name: "raise-scan", graph: "decode", changed: 2 }),
    );
  });

  test("--timing names every pass with its graph", async () => {
    const result = await mambac("compile", PAIR, "-o", out(), "--timing", "-q");
    expect(result.out).toMatch(/^\npass +graph +changed +milliseconds\n/);
    for (const row of [
      /raise-scan +prefill +2 /,
      /raise-scan +decode +2 /,
      /merge-pair +model +4 /,
      /lower +model +4 /,
    ])
      expect(result.out).toMatch(row);
  });

  test("--print-ir prints one pass, those that changed something, or all", async () => {
    const printed = async (choice: string): Promise<string[]> => {
      const { code, err } = await mambac("compile", PREFILL, "-o", out(), "-q", "--print-ir", choice);
      expect(code).toBe(0);
      return [...err.matchAll(/^; after (.*)$/gm)].map(([, name]) => name ?? "");
    };
    expect(await printed("raise-scan")).toEqual(["raise-scan"]);
    const all = await printed("all");
    const changed = await printed("changed");
    expect(all.slice(0, 4)).toEqual(["widen-halves", "normalise", "raise-conv", "raise-scan"]);
    expect(changed).toEqual(all.filter((name) => changed.includes(name)));
    expect(changed.length).toBeLessThan(all.length);
    expect(changed).toContain("lower");
  });

  test("--stop-after prints the graph instead of writing it", async () => {
    const early = await mambac("compile", PAIR, "-o", out(), "--stop-after", "raise-scan");
    expect(early.code).toBe(0);
    expect(early.out.match(/mambac\.ir\.SelectiveScan\(/g)).toHaveLength(2);
    const late = await mambac("compile", PAIR, "-o", out(), "--stop-after", "lower", "--json");
    const document = documentIn(late);
    expect(document["files"]).toBeNull();
    expect(document["ir"]).toContain("com.mambac.Mamba2ScanH8Max(");
    expect(readdirSync(folder)).toEqual([]);
  });

  test.each(["--print-ir", "--stop-after"])(
    "%s refuses a pass that does not exist, and lists those that do",
    async (flag) => {
      const result = await mambac("compile", PREFILL, "-o", out(), flag, "no-such-pass");
      expect(result).toMatchObject({ code: 2, out: "" });
      expect(result.err).toMatch(/there is no pass no-such-pass.*raise-scan/);
    },
  );

  test("--quiet says nothing when there is nothing to warn of", async () => {
    expect(await mambac("compile", PAIR, "-o", out(), "--quiet")).toEqual({ code: 0, out: "", err: "" });
  });

  test("--trust settles a pair that disagrees, with a warning even when quiet", async () => {
    const pair = fixture("hf/mamba2_groups");
    const refused = await mambac("compile", pair, "-o", out());
    expect(refused).toMatchObject({ code: 4, out: "" });
    expect(refused.err).toContain("--trust prefill or --trust decode");
    expect(readdirSync(folder)).toEqual([]);
    for (const graph of ["prefill", "decode"]) {
      const trusted = await mambac("compile", pair, "-o", out(), "--trust", graph, "-q");
      expect(trusted).toMatchObject({ code: 0, out: "" });
      expect(trusted.err).toContain(`trusting ${graph}`);
    }
  });
});
