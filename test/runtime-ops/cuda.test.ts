/** The CUDA kernels without a device: run on the host against the references, and what ptxas says of them is understood. */

import { execFileSync, spawnSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { buildEmulation, parseReport } from "../../scripts/build-cuda.js";
import { longestLoop } from "../../scripts/sass.js";

const hasCompiler = spawnSync(process.env["CXX"] ?? "g++", ["--version"]).status === 0;
if (!hasCompiler) process.stderr.write("The CUDA kernels are not tested: no C++ compiler\n");

describe.skipIf(!hasCompiler)("the CUDA kernels, every thread run on the host", () => {
  test("agree with the double reference and the CPU kernels, in place and not, whatever the order of threads", async () => {
    const program = await buildEmulation();
    const report = execFileSync(program, ["quick"], { encoding: "utf8" });
    expect(report).toMatch(/\d{7,} checks, 0 failures/);
    expect(report).toMatch(/against the CPU: of \d{5} scales \d{1,2} are the neighbouring half/);
  }, 1_800_000); // the machine may have other work
});

const LOG = `ptxas info    : Compiling entry function '_ZN6mambac4cuda12decode_plainILb0ENS0_9FloatRowsILi16EEELi16ELi4EEEvNS_8ScanArgsE' for 'sm_90'
ptxas info    : Function properties for _ZN6mambac4cuda12decode_plainILb0ENS0_9FloatRowsILi16EEELi16ELi4EEEvNS_8ScanArgsE
    8 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 80 registers, used 0 barriers, 8 bytes cumulative stack size
`;

/** Instructions that do nothing, but for branches: from where, and by how many instructions. `fresh`: as sm_90 has them. */
function machineCode(branches: readonly (readonly [number, number])[], fresh: boolean): Uint8Array {
  const code = Buffer.alloc(4096);
  for (const [at, by] of [...branches, [255, 0] as const]) {
    const words = BigInt(by - 1) * 4n;
    const high = fresh ? words >> 8n : words;
    const low = 0x7947n | (fresh ? (words & 0xffn) << 16n : 0n) | (high << 34n);
    code.writeBigUInt64LE(BigInt.asUintN(64, low), 16 * at);
    code.writeBigUInt64LE(BigInt.asUintN(18, high >> 30n) | 0x000fea0000000000n, 16 * at + 8);
  }
  return code;
}

describe("the report of a build", () => {
  test("names kernels, counts what they spill and how long they turn", () => {
    const name = LOG.slice(LOG.indexOf("'") + 1, LOG.indexOf("' for"));
    const code = machineCode(
      [
        [10, 200],
        [40, -8],
        [230, -99],
        [240, 3],
      ],
      true,
    );
    expect(parseReport(LOG, "sm_90", new Map([[name, code]]))).toEqual([
      {
        architecture: "sm_90",
        kernel: "decode_plain<false,FloatRows,16,16,4>",
        registers: 80,
        spills: 32,
        instructions: 256,
        loop: 100,
      },
    ]);
    expect(
      longestLoop(
        machineCode(
          [
            [10, 200],
            [40, -8],
            [230, -99],
          ],
          false,
        ),
      ),
    ).toBe(100);
    expect(longestLoop(machineCode([[10, 200]], false))).toBe(0);
    expect(() => longestLoop(Buffer.alloc(64))).toThrow(/laid out/);
  });

  test("refuses a log it does not understand", () => {
    expect(() => parseReport(LOG.replace("spill stores", "stores"), "sm_90", new Map())).toThrow(/does not know/);
  });
});
