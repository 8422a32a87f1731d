/**
 * npm run accept:recognise [-- PATTERN]
 *
 * One row for each fixture: blocks found and expected, form, largest proof error, and parity of the compiled f32 file with
 * the PyTorch logits, for one prefill, for a prefill split anywhere, and for decode tokens; then whether h8 and h4 run.
 * Generated models follow, measured against what ONNX Runtime makes of them as they are, and models of pictures, which
 * carry no state. Ends with 1 when any row fails.
 */

import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type FixtureRow, fixtureRow, readExpected } from "../test/support/fixture-row.js";
import { GENERATED_ROWS, writeGenerated } from "../test/support/generated-rows.js";
import { GENERATED_PICTURES, generatedPicture, pictureFixture, pictureRow } from "../test/support/picture-row.js";

const ROOT = join(import.meta.dirname, "..", "test", "fixtures");

async function main(): Promise<void> {
  const pattern = process.argv[2] ?? "";
  const hf = readdirSync(join(ROOT, "hf")).map((name) => ({
    name: `hf/${name}`,
    files: [join(ROOT, "hf", name, "prefill.onnx"), join(ROOT, "hf", name, "decode.onnx")],
    io: join(ROOT, "hf", name, "io.npz"),
  }));
  const forms = readdirSync(join(ROOT, "forms"))
    .filter((name) => name.endsWith(".onnx"))
    .map((name) => ({
      name: `forms/${name.replace(".onnx", "")}`,
      files: [join(ROOT, "forms", name)],
      io: join(ROOT, "forms", name.replace(".onnx", ".io.npz")),
    }));
  const folder = mkdtempSync(join(tmpdir(), "mambac-accept-"));
  const rows: FixtureRow[] = [];
  const show = (found: readonly FixtureRow[]): void => {
    rows.push(...found);
    for (const row of found) process.stdout.write(`${formatRow(row)}\n`);
  };
  try {
    for (const fixture of [...hf, ...forms]) {
      if (!fixture.name.includes(pattern) || !fixture.files.every((file) => existsSync(file))) continue;
      show(await fixtureRow(fixture.name, fixture.files, readExpected(fixture.io), folder));
    }
    for (const generated of GENERATED_ROWS) {
      if (!generated.name.includes(pattern)) continue;
      const { files, expected } = await writeGenerated(generated, folder);
      show(await fixtureRow(generated.name, files, expected, folder));
    }
    for (const file of readdirSync(join(ROOT, "pictures")).filter((name) => name.endsWith(".onnx"))) {
      const name = `pictures/${file.replace(".onnx", "")}`;
      if (name.includes(pattern)) show([await pictureRow(pictureFixture(name, join(ROOT, "pictures", file)), folder)]);
    }
    for (const generated of GENERATED_PICTURES) {
      if (!`generated/${generated[0]}`.includes(pattern)) continue;
      show([await pictureRow(await generatedPicture(generated, folder), folder)]);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const failed = rows.filter((row) => !row.ok);
  process.stdout.write(`${rows.length - failed.length} passed, ${failed.length} failed\n`);
  process.exitCode = failed.length === 0 ? 0 : 1;
}

function formatRow(row: FixtureRow): string {
  const number = (value: number | null): string => (value === null ? "   -   " : value.toExponential(1));
  return [
    row.ok ? "ok  " : "FAIL",
    row.name.padEnd(46),
    `${row.found}/${row.expected}`.padEnd(6),
    row.form.padEnd(26),
    `proof ${number(row.proof)}`,
    `prefill ${number(row.prefill)}`,
    `split ${number(row.split)}`,
    `decode ${number(row.decode)}`,
    `h8 ${row.h8} h4 ${row.h4}`,
    row.note,
  ].join("  ");
}

await main();
