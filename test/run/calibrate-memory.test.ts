import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, it } from "vitest";

const SCRIPT: string = fileURLToPath(new URL("../support/calibrate-memory.ts", import.meta.url));

async function largestMemory(layers: number, samples: number, cut: "apart" | "together"): Promise<number> {
  const argv = ["--import", import.meta.resolve("tsx"), SCRIPT, String(layers), String(samples), cut];
  const { stdout } = await promisify(execFile)(process.execPath, argv);
  return Number(stdout);
}

it("takes memory for one block, whatever the depth and the number of sequences", async () => {
  const small = await largestMemory(4, 4, "apart");
  const large = await largestMemory(40, 12, "apart");
  const together = await largestMemory(40, 2, "together");
  const megabytes = (bytes: number): number => bytes / 2 ** 20;
  // What the collector of garbage has not yet taken makes up to 50 MB of difference; 36 more layers together take 250.
  expect(megabytes(large - small)).toBeLessThan(80);
  expect(megabytes(together - small)).toBeGreaterThan(160);
});
