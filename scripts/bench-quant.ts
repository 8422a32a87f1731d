/**
 * Speed of the numerics that weights go through, in MB/s of float32 weights and of CPU time (so that other work on the
 * machine matters less). Run with: npx tsx scripts/bench-quant.ts
 */

import { hadamardRotation, rotateColumns, rotateRows } from "../src/linalg/hadamard.js";
import { matrixOf } from "../src/linalg/matrix.js";
import { gptq } from "../src/quant/gptq.js";
import { dequantize, quantize } from "../src/quant/grid.js";
import { packCodes } from "../src/quant/packing.js";
import { roundToNearest } from "../src/quant/round-nearest.js";
import { parseWeightScheme } from "../src/quant/scheme.js";
import { openOrtGemm } from "../src/run/ort-gemm.js";
import { Random } from "../src/support/random.js";

const [INPUTS, OUTPUTS] = [2560, 4096];
const ROUNDS = 3;

const random = new Random(1);
const pool = Float32Array.from({ length: 1 << 18 }, () => 0.02 * random.normal());
const data = new Float32Array(INPUTS * OUTPUTS).map((_, i) => pool[(i * 40503 + (i >> 18) * 977) & 0x3ffff] ?? 0);
const weight = { label: "w", shape: [INPUTS, OUTPUTS], data };

/** Best of a few rounds. */
async function report(name: string, bytes: number, work: () => unknown): Promise<void> {
  let least = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round++) {
    const start = process.cpuUsage();
    await work();
    const { user, system } = process.cpuUsage(start);
    least = Math.min(least, (user + system) / 1e6);
  }
  console.log(`${name.padEnd(28)} ${(bytes / 1e6 / least).toFixed(0).padStart(6)} MB/s`);
}

for (const text of ["i4:g128", "i8:channel", "u4:g32", "i8:tensor", "i4:g128:mse", "i8:channel:mse"]) {
  await report(`round-nearest ${text}`, data.byteLength, () => roundToNearest(weight, parseWeightScheme(text)));
}
const quantized = roundToNearest(weight, parseWeightScheme("i4:g128"));
await report("quantize i4:g128", data.byteLength, () => quantize(data, weight.shape, quantized));
await report("dequantize i4:g128", data.byteLength, () => dequantize(quantized));
await report("pack i4", data.byteLength, () => packCodes(quantized.codes, 4));
for (const size of [2048, 2560]) {
  const rotation = hadamardRotation(size);
  const rotated = data.slice(0, size * OUTPUTS);
  await report(`rotateRows ${size}`, rotated.byteLength, () => rotateRows(rotated, rotation, "forward"));
  await report(`rotateColumns ${size}`, rotated.byteLength, () => rotateColumns(rotated, OUTPUTS, rotation, "forward"));
}
await using ort = openOrtGemm({ threads: 2 });
const inputs = 1024;
const x = matrixOf(
  2048,
  inputs,
  Float64Array.from({ length: 2048 * inputs }, () => random.normal()),
);
const hessian = await ort.gemm(x, x, { transposeA: true });
const square = { label: "w", shape: [inputs, 2048], data: data.slice(0, inputs * 2048) };
await report("gptq i4:g128 [1024,2048]", square.data.byteLength, () =>
  gptq(square, hessian, parseWeightScheme("i4:g128"), ort.gemm),
);
