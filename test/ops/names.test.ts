import { describe, expect, test } from "vitest";
import { dependencies } from "../../src/ir/graph.js";
import { opAttributes, opFunction } from "../../src/ops/functions.js";
import {
  codesOp,
  convName,
  gateName,
  type OpSpec,
  opName,
  opNames,
  parseOpName,
  pseudoHeadDim,
  ROTATION_OP,
  replayLayout,
  stateType,
} from "../../src/ops/names.js";
import { MambacError } from "../../src/support/errors.js";

function nameOf(spec: OpSpec): string {
  switch (spec.kind) {
    case "scan":
      return opName(spec);
    case "conv":
      return convName(spec.activation, spec.layout);
    case "rotation":
      return spec.codes ? (codesOp(ROTATION_OP) ?? "") : ROTATION_OP;
    default:
      return spec.codes ? (codesOp(gateName(spec.gate)) ?? "") : gateName(spec.gate);
  }
}

describe("operator names", () => {
  test("are the 30 scans, 6 convolutions, the rotation and the 3 gates of the contract, and the codes of the last four", () => {
    const formats = ["F32", "F16", "F16Token", "H8", "H8Token", "H8Max", "H8MaxToken"];
    formats.push("H4", "H4Token", "H4Max", "H4MaxToken");
    const replays = ["H8", "H8Max", "H4", "H4Max"].map((format) => `Mamba2Scan${format}Replay`);
    const scans = ["Mamba1", "Mamba2"].flatMap((family) => formats.map((format) => `${family}Scan${format}`));
    const statics = ["H8Static", "H4Static"].flatMap((format) => [`Mamba2Scan${format}`, `Mamba2Scan${format}Token`]);
    const convs = ["", "Silu"].flatMap((silu) => ["", "Rows", "Split"].map((end) => `CausalConv${silu}${end}`));
    const rows = ["HadamardRotate", "SiluGate", "SlopedSiluGate", "GatedRMSNorm"];
    const others = [...convs, ...rows, ...rows.map((name) => `${name}Q8`)];
    expect(opNames().toSorted()).toEqual([...scans, ...replays, ...statics, ...others].toSorted());
    expect(rows.map(codesOp)).toEqual(rows.map((name) => `${name}Q8`));
    expect([...scans, ...convs, "HadamardRotateQ8", "Softmax"].map(codesOp)).toEqual(
      Array.from({ length: scans.length + convs.length + 2 }, () => null),
    );
  });

  test("round-trip through their specification", () => {
    for (const name of opNames()) {
      const spec = parseOpName(name);
      if (spec === null) throw new Error(name);
      expect(nameOf(spec)).toBe(name);
    }
    expect(parseOpName("Mamba2ScanF32Token")).toBeNull();
    for (const name of [
      "Mamba2ScanF32Replay",
      "Mamba2ScanF16Replay",
      "Mamba1ScanH8Replay",
      "Mamba2ScanH4TokenReplay",
      "Mamba2ScanH4StaticReplay",
      "Mamba2ScanF16Static",
      "Mamba1ScanH8Static",
    ]) {
      expect(parseOpName(name)).toBeNull();
    }
    expect(parseOpName("mamba2ScanF32")).toBeNull();
  });

  test("drop what means nothing for a format", () => {
    expect(opName({ family: "mamba2", format: "f32", scale: "dsq-max", requantize: "token" })).toBe("Mamba2ScanF32");
    expect(opName({ family: "mamba1", format: "f16", scale: "dsq-max" })).toBe("Mamba1ScanF16");
    expect(opName({ family: "mamba1", format: "f16", scale: "static" })).toBe("Mamba1ScanF16");
  });
});

describe("state types", () => {
  const dims = { heads: 24, headDim: 64, dState: 128 };
  test("match the contract's table", () => {
    expect(stateType({ family: "mamba2", format: "f32" }, dims)).toEqual({
      dtype: "f32",
      shape: [24, 64, 128],
      bytes: 24 * 32768,
    });
    expect(stateType({ family: "mamba1", format: "f16" }, { heads: 24, headDim: 64, dState: 16 })).toEqual({
      dtype: "f16",
      shape: [1536, 16],
      bytes: 1536 * 32,
    });
    expect(stateType({ family: "mamba2", format: "h8" }, dims).shape).toEqual([24, 8576]);
    expect(stateType({ family: "mamba2", format: "h4" }, dims)).toEqual({
      dtype: "u8",
      shape: [24, 4480],
      bytes: 24 * 4480,
    });
  });

  test("with static scales are codes alone", () => {
    const dims = { heads: 24, headDim: 64, dState: 128 };
    const of = (format: "h8" | "h4"): unknown => stateType({ family: "mamba2", format, scale: "static" }, dims);
    expect(of("h8")).toEqual({ dtype: "u8", shape: [24, 8192], bytes: 24 * 8192 });
    expect(of("h4")).toEqual({ dtype: "u8", shape: [24, 4096], bytes: 24 * 4096 });
    expect(opFunction("Mamba2ScanH4Static").inputs.slice(-2)).toEqual(["row_step", "column_step"]);
    expect(opFunction("Mamba2ScanH4Max").inputs.at(-1)).toBe("past");
  });

  test("of a replay are bytes, a multiple of 64, with rings of R tokens behind the checkpoint", () => {
    const replay = { family: "mamba2", format: "h4", requantize: "replay" } as const;
    const ring = (length: number): number => length * (24 * (2 * 64 + 4) + 2 * 2 * 128);
    for (const replayLength of [1, 5, 16, 64]) {
      const { dtype, shape, bytes } = stateType(replay, { ...dims, groups: 2, replayLength });
      expect(dtype).toBe("u8");
      expect(shape).toEqual([bytes]);
      expect(bytes).toBe(64 * Math.ceil((24 * 4480 + ring(replayLength) + 4) / 64));
      expect(replayLayout("h4", { ...dims, groups: 2, replayLength })).toMatchObject({ u: 24 * 4480, bytes });
    }
    expect(stateType(replay, { ...dims, groups: 2 })).toEqual(
      stateType(replay, { ...dims, groups: 2, replayLength: 16 }),
    );
    for (const replayLength of [0, 65, 2.5]) {
      expect(() => stateType(replay, { ...dims, groups: 2, replayLength })).toThrow(/1 to 64 tokens/);
    }
  });

  test("refuse 4 bits for an odd d_state, with a way out", () => {
    expect(() => stateType({ family: "mamba2", format: "h4" }, { heads: 1, headDim: 4, dState: 7 })).toThrow(
      MambacError,
    );
    expect(() => stateType({ family: "mamba2", format: "h4" }, { heads: 1, headDim: 4, dState: 7 })).toThrow(/h8, f16/);
  });
});

test("pseudo-heads are the largest divisors up to 32", () => {
  expect([1536, 100, 64, 63, 67, 130, 1].map(pseudoHeadDim)).toEqual([32, 25, 32, 21, 1, 26, 1]);
});

test("every function declares its attributes, names its values once and captures only what exists", () => {
  for (const name of opNames()) {
    const definition = opFunction(name);
    expect(definition.name).toBe(name);
    expect(definition.attributes).toEqual(opAttributes(name));
    expect(definition.attributeDefaults.size).toBe(0);
    const known = new Set(definition.inputs);
    for (const node of definition.nodes) {
      for (const input of dependencies(node)) expect(known.has(input), `${name}: ${input}`).toBe(true);
      for (const output of node.outputs) {
        expect(known.has(output), `${name}: ${output} twice`).toBe(false);
        known.add(output);
      }
    }
    for (const output of definition.outputs) expect(known.has(output)).toBe(true);
  }
});
