/** The same files in onnxruntime-web: every function, at one token and at several. */

import * as web from "onnxruntime-web";
import { beforeAll, expect, test } from "vitest";
import type { Tensor } from "../../src/ir/tensor.js";
import { isPacked, opNames, parseOpName, type ScanSpec } from "../../src/ops/names.js";
import { compareReplay, withExactSteps } from "./replay-case.js";
import {
  compareCodes,
  randomData,
  referenceScan,
  relativeError,
  type ScanSizes,
  scanFeeds,
  scanModel,
} from "./scan-case.js";

const SPECS: readonly { readonly name: string; readonly spec: ScanSpec }[] = opNames().flatMap((name) => {
  const spec = parseOpName(name);
  return spec?.kind === "scan" ? [{ name, spec }] : [];
});

beforeAll(() => {
  web.env.wasm.numThreads = 1;
});

function toWeb(tensor: Tensor): web.Tensor {
  const bytes = tensor.bytes().slice();
  const { shape } = tensor;
  switch (tensor.dtype) {
    case "f32":
      return new web.Tensor("float32", new Float32Array(bytes.buffer), shape);
    case "f16":
      return new web.Tensor("float16", new Uint16Array(bytes.buffer), shape);
    case "u8":
      return new web.Tensor("uint8", bytes, shape);
    default:
      throw new Error(`no scan takes ${tensor.dtype}`);
  }
}

test.each(SPECS)("$name runs in WebAssembly", async ({ spec }) => {
  for (const length of [1, 11]) {
    const s: ScanSizes = {
      batch: 2,
      // Rounding after every token makes runs part at the first tie; few tokens keep that out of this test.
      length: spec.requantize === "token" ? Math.min(length, 2) : length,
      heads: 4,
      headDim: 8,
      dState: 16,
      groups: 2,
      chunkSize: 4,
      dtMin: Number.NEGATIVE_INFINITY,
      dtMax: Number.POSITIVE_INFINITY,
      replayLength: 5,
    };
    const random = randomData(spec, s, 91);
    const data = spec.requantize === "replay" ? withExactSteps(random) : random;
    const session = await web.InferenceSession.create(scanModel(spec, s));
    const feeds = Object.fromEntries([...scanFeeds(spec, s, data)].map(([name, tensor]) => [name, toWeb(tensor)]));
    const { y, present } = await session.run(feeds);
    await session.release();
    if (!(y?.data instanceof Float32Array) || present === undefined) throw new Error("the scan gave no outputs");
    const expected = referenceScan(spec, s, data);
    expect(relativeError(y.data, expected.y)).toBeLessThanOrEqual(1e-5);
    if (isPacked(spec.format) && expected.packed !== undefined) {
      if (!(present.data instanceof Uint8Array)) throw new Error("a packed state is bytes");
      const difference =
        spec.requantize === "replay"
          ? compareReplay(spec, s, present.data, expected.packed)
          : compareCodes(spec.format, s.headDim, s.dState, present.data, expected.packed, spec.scale);
      expect(difference.largest).toBeLessThanOrEqual(1);
      expect(difference.different).toBeLessThanOrEqual(1);
    } else if (present.data instanceof Float32Array) {
      expect(relativeError(present.data, expected.state)).toBeLessThanOrEqual(1e-5);
    }
  }
});
