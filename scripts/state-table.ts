/** What stored states cost on models and texts under a folder, and the table that tells it. */

import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import type { LayerRow } from "../src/compile.js";
import { type LoadedPackage, type LoadOptions, loadPackage } from "../src/run/stateful.js";
import { losses, mean, type TextScores, textScores } from "../test/support/state-quality.js";

/** A loaded model and the bytes of a sequence's scan states, as float32 and as stored. */
export interface Stored {
  readonly model: LoadedPackage;
  readonly floatBytes: number;
  readonly bytes: number;
}

/** Null where a scan is not Mamba-2. */
export async function loadStored(
  file: string,
  rows: readonly LayerRow[],
  options: LoadOptions,
): Promise<Stored | null> {
  const scans = rows.filter(({ kind }) => kind === "scan");
  if (!scans.every(({ form }) => form.startsWith("mamba2"))) return null;
  const total = (of: (row: (typeof scans)[number]) => number): number => scans.reduce((sum, row) => sum + of(row), 0);
  return {
    model: await loadPackage(file, options),
    floatBytes: total(({ bytesBefore }) => bytesBefore),
    bytes: total(({ bytesAfter }) => bytesAfter),
  };
}

/** PATH/text/*.valid.txt. */
export function textsUnder(path: string): string[] {
  const names = readdirSync(join(path, "text")).filter((name) => name.endsWith(".valid.txt"));
  return names.map((name) => join(path, "text", name));
}

/** PATH/models/<name>/prefill.onnx, by name. */
export function sourcesUnder(path: string): Map<string, string> {
  const names = readdirSync(join(path, "models"));
  return new Map(
    names
      .map((name) => [name, join(path, "models", name, "prefill.onnx")] as const)
      .filter(([, file]) => existsSync(file)),
  );
}

/** Scores stored states against a float model, one token a call, and prints a row for each. */
export class StateTable {
  readonly #texts: readonly string[];
  readonly #windows: number;
  readonly #reference: LoadedPackage;
  readonly #float: TextScores;

  private constructor(texts: readonly string[], windows: number, reference: LoadedPackage, float: TextScores) {
    [this.#texts, this.#windows, this.#reference, this.#float] = [texts, windows, reference, float];
  }

  /** Prints the head and the row of float states. Two sessions of one model: each keeps its own state. */
  static async open(
    source: string,
    texts: readonly string[],
    windows: number,
    reference: Stored,
    plain: Stored,
  ): Promise<StateTable> {
    const float = await textScores(plain.model, reference.model, { windows, window: 512 }, texts);
    const names = texts.map((text) => basename(text).replace(/\..*/, ""));
    const heads = [...names.map((name) => `${name} bits`), ...names.map((name) => `${name} %`), "mean %", "KL bits"];
    process.stdout.write(
      `\n${source}, ${windows} x 512 bytes of each text\n` +
        `${["state".padEnd(26), ...heads.map((head) => head.padStart(13))].join("")}   bytes a sequence\n`,
    );
    const table = new StateTable(texts, windows, reference.model, float);
    table.#print("f32", float, plain);
    return table;
  }

  /** Prints a row; its mean divergence from the float model in bits a byte. Closes the model. */
  async row(label: string, stored: Stored): Promise<number> {
    await using model = stored.model;
    const scores = await textScores(model, this.#reference, { windows: this.#windows, window: 512 }, this.#texts);
    this.#print(label, scores, stored);
    return mean(scores.divergence);
  }

  #print(label: string, { bits, divergence }: TextScores, { floatBytes, bytes }: Stored): void {
    const change = losses(bits, this.#float.bits);
    const cells = [
      ...bits.map((value) => value.toFixed(4)),
      ...[...change, mean(change)].map((value) => value.toFixed(2)),
      mean(divergence).toExponential(2),
    ].map((cell) => cell.padStart(13));
    process.stdout.write(
      `${label.padEnd(26)}${cells.join("")}   ${bytes} (${(floatBytes / bytes).toFixed(2)}x less than f32)\n`,
    );
  }
}
