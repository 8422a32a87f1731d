/** Halves to bytes and back, over every finite half, natively and in WebAssembly, whose Log and Exp are others. */

import * as web from "onnxruntime-web";
import { beforeAll, expect, test } from "vitest";
import { typed } from "../../src/ir/builder.js";
import { f32Tensor, float16ToNumber } from "../../src/ir/tensor.js";
import { encodeModel } from "../../src/onnx/write.js";
import { Body } from "../../src/ops/body.js";
import { bytesToHalves, halvesToBytes } from "../../src/ops/half-bytes.js";
import { openSession } from "../../src/run/session.js";

const ROWS = 31;
const HALVES = Float32Array.from({ length: ROWS * 1024 }, (_, bits) => float16ToNumber(bits));
const BYTES = Uint8Array.from({ length: 2 * HALVES.length }, (_, i) => ((i >> 1) >> (8 * (i & 1))) & 255);

/** halves [1,31,1024] -> bytes [1,31,1024,2], and back to halves. */
function model(): Uint8Array {
  const body = new Body();
  const bytes = halvesToBytes(body, "halves");
  const back = bytesToHalves(body, body.reshape(bytes, 1, ROWS, 2048), body.ints(ROWS));
  const graph = body.builder.graph(
    "halves",
    [typed("halves", "f32", [1, ROWS, 1024])],
    [typed(bytes, "u8", [1, ROWS, 1024, 2]), typed(back, "f32", [1, ROWS, 1024])],
  );
  return encodeModel({
    irVersion: 10,
    producerName: "mambac",
    producerVersion: "",
    domain: "",
    modelVersion: 0n,
    doc: "",
    opsets: new Map([["", 21]]),
    graph,
    functions: [],
    metadata: new Map(),
  });
}

test("every half has its IEEE bytes and comes back, in native ONNX Runtime", async () => {
  const session = await openSession(model());
  const outputs = await session.run(new Map([["halves", f32Tensor([1, ROWS, 1024], HALVES)]]));
  const [bytes, back] = session.outputNames.map((name) => outputs.get(name)?.bytes());
  await session.release();
  expect(Buffer.compare(bytes ?? new Uint8Array(), BYTES)).toBe(0);
  expect(Buffer.compare(back ?? new Uint8Array(), new Uint8Array(HALVES.buffer))).toBe(0);
});

beforeAll(() => {
  web.env.wasm.numThreads = 1;
});

test("every half has its IEEE bytes and comes back, in WebAssembly", async () => {
  const session = await web.InferenceSession.create(model());
  const outputs = await session.run({ halves: new web.Tensor("float32", HALVES, [1, ROWS, 1024]) });
  const [bytes, back] = session.outputNames.map((name) => outputs[name]?.data);
  await session.release();
  expect(bytes).toEqual(BYTES);
  expect(back).toEqual(HALVES);
});
