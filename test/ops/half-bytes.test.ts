/** Halves and floats to bytes and back, over every finite half, natively and in WebAssembly, whose Log and Exp are others. */

import * as web from "onnxruntime-web";
import { beforeAll, expect, test } from "vitest";
import { typed } from "../../src/ir/builder.js";
import { makeModel } from "../../src/ir/graph.js";
import { f32Tensor, float16ToNumber } from "../../src/ir/tensor.js";
import { encodeModel } from "../../src/onnx/write.js";
import { Body } from "../../src/ops/body.js";
import {
  bytesToFloats,
  bytesToHalves,
  bytesToSignedHalves,
  floatsToBytes,
  halvesToBytes,
  signedHalvesToBytes,
} from "../../src/ops/half-bytes.js";
import { openSession } from "../../src/run/session.js";
import { Random } from "../../src/support/random.js";

const ROWS = 31;
const HALVES = Float32Array.from({ length: ROWS * 1024 }, (_, bits) => float16ToNumber(bits));
const BYTES = Uint8Array.from({ length: 2 * HALVES.length }, (_, i) => ((i >> 1) >> (8 * (i & 1))) & 255);

/** Halves of both signs, -0 among them; -0 keeps its sign. */
const SIGNED = Float32Array.from([...HALVES, ...HALVES.map((value) => -value)]);
const SIGNED_BYTES = Uint8Array.from([...BYTES, ...BYTES.map((byte, i) => (i % 2 === 1 ? byte | 0x80 : byte))]);

/** Random float32 of every size, subnormal ones too, and what lies next to powers of two. */
const FLOATS = floats();

function floats(): Float32Array {
  const random = new Random(4).split("floats");
  const bits: number[] = [];
  for (let exponent = 0; exponent < 255; exponent++) {
    for (const fraction of [0, 1, 2 ** 22, 2 ** 23 - 1]) bits.push(exponent * 2 ** 23 + fraction);
  }
  while (bits.length < 20_000) bits.push(random.integer(255) * 2 ** 23 + random.integer(2 ** 23));
  const signed = Uint32Array.from(bits.flatMap((value) => [value, value + 2 ** 31]));
  return new Float32Array(signed.buffer);
}

/** A value [1,M] made from values [1,M]. */
function model(make: (body: Body, values: string) => { readonly bytes: string; readonly back: string }): Uint8Array {
  const body = new Body();
  const { bytes, back } = make(body, "values");
  const graph = body.builder.graph(
    "halves",
    [typed("values", "f32", [1, "count"])],
    [typed(bytes, "u8", null), typed(back, "f32", null)],
  );
  return encodeModel(makeModel(graph));
}

const CASES: readonly (readonly [string, Uint8Array, Float32Array, Uint8Array])[] = [
  [
    "half without sign",
    model((body, values) => {
      const bytes = halvesToBytes(body, body.reshape(values, 1, ROWS, 1024));
      return { bytes, back: bytesToHalves(body, body.reshape(bytes, 1, ROWS, 2048), body.ints(ROWS)) };
    }),
    HALVES,
    BYTES,
  ],
  [
    "half",
    model((body, values) => {
      const bytes = signedHalvesToBytes(body, values);
      return { bytes, back: bytesToSignedHalves(body, bytes) };
    }),
    SIGNED,
    SIGNED_BYTES,
  ],
  [
    "of many floats",
    model((body, values) => {
      const bytes = floatsToBytes(body, values);
      return { bytes, back: bytesToFloats(body, bytes) };
    }),
    FLOATS,
    new Uint8Array(FLOATS.buffer),
  ],
];

test.each(CASES)(
  "every %s has its IEEE bytes and comes back, in native ONNX Runtime",
  async (_name, model, values, wanted) => {
    const session = await openSession(model);
    const outputs = await session.run(new Map([["values", f32Tensor([1, values.length], values)]]));
    const [bytes, back] = session.outputNames.map((name) => outputs.get(name)?.bytes());
    await session.release();
    expect(Buffer.compare(bytes ?? new Uint8Array(), wanted)).toBe(0);
    expect(Buffer.compare(back ?? new Uint8Array(), new Uint8Array(values.buffer))).toBe(0);
  },
);

beforeAll(() => {
  web.env.wasm.numThreads = 1;
});

test.each(CASES)("every %s has its IEEE bytes and comes back, in WebAssembly", async (_name, model, values, wanted) => {
  const session = await web.InferenceSession.create(model);
  const outputs = await session.run({ values: new web.Tensor("float32", values, [1, values.length]) });
  const [bytes, back] = session.outputNames.map((name) => outputs[name]?.data);
  await session.release();
  expect(bytes).toEqual(wanted);
  expect(back).toEqual(values);
});

test("an infinity becomes the largest finite value", async () => {
  const session = await openSession(
    model((body, values) => {
      const bytes = floatsToBytes(body, values);
      return { bytes, back: bytesToFloats(body, bytes) };
    }),
  );
  const given = f32Tensor([1, 2], [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]);
  const outputs = await session.run(new Map([["values", given]]));
  const largest = (2 - 2 ** -23) * 2 ** 127;
  const back = outputs.get(session.outputNames[1] ?? "")?.bytes() ?? new Uint8Array();
  expect([...new Float32Array(back.slice().buffer)]).toEqual([largest, -largest]);
  await session.release();
});
