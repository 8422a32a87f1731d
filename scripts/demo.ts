/**
 * npm run demo
 *
 * Compiles the model of `examples/demo` with an f32, an 8-bit and a 4-bit state, and prints what changes: file size, bytes
 * of state a sequence, bits per byte on three texts, and a sentence each version writes.
 */

import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { passesFor } from "../passes/index.js";
import {
  byteTokenizer,
  type CompileReport,
  compile,
  evaluate,
  generate,
  loadPackage,
  type StateChoice,
  type StateFormat,
} from "../src/index.js";

const EXAMPLE = join(import.meta.dirname, "..", "examples", "demo");
const SOURCE = join(EXAMPLE, "prefill.onnx");
const TEXTS = ["kjv", "wordnet", "jargon"] as const;
const WINDOWS = 12;
const PROMPT = "And it came to pass, that ";

interface Row {
  readonly name: string;
  readonly megabytes: number;
  /** Null for the source: a plain forward graph has no state and cannot go on from a token. */
  readonly stateBytes: number | null;
  readonly bitsPerByte: readonly number[];
}

async function main(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "mambac-demo-"));
  const print = (text: string): void => void process.stdout.write(text);
  try {
    print(`Model: ${join("examples", "demo", "prefill.onnx")}, Mamba-2, 0.5 million parameters, bytes as tokens.\n`);
    print(
      `Bits per byte: first ${WINDOWS} x 512 bytes of each text, zero state at each start; compiled models are fed\n`,
    );
    print("one byte a call, so that a packed state is rounded after every byte.\n\n");
    print(`${["", "file", "state/sequence", ...TEXTS].map((head, at) => head.padEnd(at === 0 ? 20 : 15)).join("")}\n`);
    print(line({ name: "source", megabytes: size(SOURCE), stateBytes: null, bitsPerByte: await bits(SOURCE) }));
    const sentences: string[] = [];
    for (const format of ["f32", "h8", "h4"] as const) {
      const output = join(folder, `${format}.onnx`);
      const report = await compileDemo(format, output);
      const stateBytes = report.rows.reduce((sum, row) => sum + row.bytesAfter, 0);
      const megabytes = size(output) + (report.written?.data == null ? 0 : size(report.written.data.path));
      print(line({ name: `compiled, ${format}`, megabytes, stateBytes, bitsPerByte: await bits(output) }));
      sentences.push(`${format}: ${PROMPT}${await continuation(output)}`);
    }
    print(`\n${sentences.join("\n")}\n`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function compileDemo(format: StateFormat, output: string): Promise<CompileReport> {
  const state: StateChoice = { format, scale: "dsq-max", requantize: "call" };
  return compile({ inputs: [SOURCE], output, state }, passesFor({ state }));
}

function size(path: string): number {
  return statSync(path).size / 1e6;
}

async function bits(path: string): Promise<number[]> {
  await using model = await loadPackage(path, { batch: WINDOWS });
  const out: number[] = [];
  for (const name of TEXTS) {
    const text = readFileSync(join(EXAMPLE, `${name}.txt`));
    const result = await evaluate({ model, text, windows: WINDOWS, mode: model.stateful ? "token" : "call" });
    out.push(result.bitsPerByte ?? Number.NaN);
  }
  return out;
}

async function continuation(path: string): Promise<string> {
  await using model = await loadPackage(path);
  const { tokens } = await generate(model, byteTokenizer.encode(PROMPT), { maxTokens: 80 });
  return byteTokenizer.decode(tokens);
}

function line(row: Row): string {
  const cells = [
    `${row.megabytes.toFixed(2)} MB`,
    row.stateBytes === null ? "none" : `${row.stateBytes} B`,
    ...row.bitsPerByte.map((value) => value.toFixed(4)),
  ];
  return `${row.name.padEnd(20)}${cells.map((cell) => cell.padEnd(15)).join("")}\n`;
}

await main();
