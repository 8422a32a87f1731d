/** The examples of the help run as they are printed. */

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { EXAMPLES } from "../../bin/examples.js";
import { mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";
import { DEMO } from "../support/state-quality.js";

const root = mkdtempSync(join(tmpdir(), "mambac-examples-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
cpSync(join(DEMO, "prefill.onnx"), join(root, "prefill.onnx"));
for (const [from, to] of [
  ["kjv.txt", "text.txt"],
  ["jargon.txt", "other.txt"],
]) {
  writeFileSync(join(root, to ?? ""), readFileSync(join(DEMO, from ?? "")));
}

/** Shorter where an example would measure for long; says nothing else. */
const SHORTER: Readonly<Record<string, readonly string[]>> = {
  compile: ["--num-samples", "8", "--seq-len", "128"],
  calibrate: ["--num-samples", "8", "--seq-len", "128"],
  verify: ["--lengths", "1,16"],
  generate: ["--max-tokens", "8"],
  eval: ["--windows", "2", "--window", "64"],
  compare: ["--windows", "1", "--window", "64", "--num-samples", "8", "--seq-len", "128"],
};

/** Measured at length by tests of their own. */
const isLong = (line: string): boolean => /sensitivity|--recipe auto|mambac bench/.test(line);

/** Words of a line, files put into the folder; the demo has no decode graph. */
function argvOf(line: string): string[] {
  const [, ...words] = (line.match(/"[^"]*"|\S+/g) ?? []).map((word) => word.replaceAll('"', ""));
  const argv = words.flatMap((word) => {
    if (word === "decode.onnx") return [];
    return /\.(onnx|txt|json|yaml)$|^(absent|models|genai-model)$/.test(word) ? [join(root, word)] : [word];
  });
  const own = argv[1] === "merge" ? [] : (SHORTER[argv[0] ?? ""] ?? []);
  return [...argv, ...own];
}

describe("examples", () => {
  test("every command has some, in its help", async () => {
    const { out } = await mambac("--help");
    const commands = [...out.matchAll(/^ {2}([a-z-]+) (?:\[|<| )/gm)].map(([, name]) => name ?? "");
    expect(commands.filter((name) => name !== "help").sort()).toEqual(Object.keys(EXAMPLES).sort());
    for (const [name, lines] of Object.entries(EXAMPLES)) {
      const help = (await mambac(name, "--help")).out;
      for (const line of lines) expect(help).toContain(`  ${line}\n`);
    }
  });

  test("run, in their order", async () => {
    for (const line of Object.values(EXAMPLES).flat()) {
      // What is shown for shards is true of both.
      if (line.includes("merge")) {
        const other = argvOf((EXAMPLES["calibrate"] ?? [])[1] ?? "").map((word) =>
          word.replace("1/2", "2/2").replace("part1", "part2"),
        );
        expect((await mambac(...other)).code).toBe(0);
      }
      const [command, file] = line.split(" > ");
      if (line === "mambac build-ops") continue; // as good as nothing to say, and test/api/package.test.ts runs it
      if (isLong(line)) {
        // Understood as far as the first file, which is not there.
        const { code, err } = await mambac(
          ...argvOf((command ?? "").replace(/(prefill|out)\.onnx|other\.txt/, "absent")),
        );
        expect(code, `${line}\n${err}`).toBe(2);
        expect(err).toMatch(/absent.*does not exist|there is no|cannot read/);
        continue;
      }
      const result = await mambac(...argvOf(command ?? ""));
      expect(result.code, `${line}\n${result.err}`).toBe(0);
      if (file !== undefined) writeFileSync(join(root, file), result.out);
      // The examples of `compare` take the table of `calibrate --recipe`, which that of the shards replaces.
      if (line.startsWith("mambac calibrate merge")) {
        expect((await mambac(...argvOf((EXAMPLES["calibrate"] ?? [])[0] ?? ""))).code).toBe(0);
      }
    }
  }, 180_000);

  test("of a pair run on a pair", async () => {
    const pair = ["prefill", "decode"].map((name) => fixture(`hf/mamba2/${name}.onnx`));
    expect((await mambac("compile", ...pair, "--dry-run")).code).toBe(0);
  });
});
