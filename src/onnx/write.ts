/** Writes the IR as ONNX. */

import type { Model } from "../ir/graph.js";
import { MambacError } from "../support/errors.js";
import { modelMessage } from "./encode-model.js";
import { encode } from "./proto.js";

/** Protobuf messages end at 2 GiB. */
const MAX_PROTO_BYTES = 2 ** 31 - 1;

/**
 * The whole model as one ONNX message, weights inline. Equal models give equal bytes. Throws `onnx/too-large` from 2 GiB
 * on.
 */
export function encodeModel(model: Model): Uint8Array {
  const { pieces, byteLength } = encode(
    "ModelProto",
    modelMessage(model, () => undefined),
  );
  if (byteLength > MAX_PROTO_BYTES) {
    throw new MambacError(
      "onnx/too-large",
      `the model has ${byteLength} bytes, but an ONNX file ends at 2 GiB; write it with external data`,
    );
  }
  const out = new Uint8Array(byteLength);
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.byteLength;
  }
  return out;
}
