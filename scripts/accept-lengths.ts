/**
 * npm run accept:lengths
 *
 * A row for every fixture whose source is unrolled or frozen: the compiled f32 file at lengths 1, 5, 24 and 100, one call
 * against one call a token. Ends with 1 when a length does not run or differs by more than 1e-4.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FROZEN_FIXTURES, LENGTH_LIMIT, LENGTHS, lengthRow } from "../test/support/free-lengths.js";

async function main(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "mambac-lengths-"));
  const print = (cells: readonly string[]): void =>
    void process.stdout.write(
      `${cells
        .map((cell, at) => cell.padEnd(at === 1 ? 52 : at === 2 ? 12 : 9))
        .join(" ")
        .trimEnd()}\n`,
    );
  let failed = 0;
  try {
    print(["", "fixture", "source", ...LENGTHS.map((length) => `L=${length}`)]);
    for (const name of FROZEN_FIXTURES) {
      try {
        const row = await lengthRow(name, folder);
        const ok = row.errors.every((error) => error < LENGTH_LIMIT);
        if (!ok) failed += 1;
        print([ok ? "ok" : "FAIL", name, row.declared, ...row.errors.map((error) => error.toExponential(1))]);
      } catch (cause) {
        failed += 1;
        print(["FAIL", name, cause instanceof Error ? cause.message : String(cause)]);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  process.stdout.write(`${FROZEN_FIXTURES.length - failed} of ${FROZEN_FIXTURES.length} run at every length\n`);
  process.exitCode = failed === 0 ? 0 : 1;
}

await main();
