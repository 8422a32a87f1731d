import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { type DatasetOptions, openDataset } from "../../src/run/dataset.js";

const root = mkdtempSync(join(tmpdir(), "mambac-part-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const PATH = join(root, "bytes.txt");
writeFileSync(
  PATH,
  Uint8Array.from({ length: 90 }, (_, at) => at),
);

async function indices(options: Partial<DatasetOptions>): Promise<{ count: number; found: number[]; hash: string }> {
  const dataset = await openDataset({ paths: [PATH], vocabulary: 256, sequenceLength: 10, samples: 9, ...options });
  const found: number[] = [];
  for await (const { index } of dataset.sequences()) found.push(index);
  dataset.close();
  return { count: dataset.count, found, hash: dataset.description.tokensSha256 };
}

test("the two parts share nothing and make the whole, and tell of the same data", async () => {
  const whole = await indices({});
  const calibration = await indices({ part: "calibration" });
  const heldOut = await indices({ part: "held-out" });
  expect(heldOut.found).toEqual([3, 7]);
  expect([...calibration.found, ...heldOut.found].sort((a, b) => a - b)).toEqual(whole.found);
  expect([calibration.count, heldOut.count]).toEqual([7, 2]);
  expect(new Set([whole.hash, calibration.hash, heldOut.hash]).size).toBe(1);
});

test("too few sequences to hold some out are refused", async () => {
  await expect(indices({ samples: 3, part: "held-out" })).rejects.toMatchObject({ code: "dataset/part", exitCode: 5 });
  expect((await indices({ samples: 3, part: "calibration" })).found).toEqual([0, 1, 2]);
});
