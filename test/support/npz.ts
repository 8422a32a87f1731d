/** Reads NumPy archives (.npz): stored or deflated zip entries holding .npy arrays of versions 1 to 3. */

import { readFileSync } from "node:fs";
import { inflateRawSync } from "node:zlib";
import { type Tensor, tensorFromBytes } from "../../src/ir/tensor.js";
import type { DType } from "../../src/ir/types.js";

const END_RECORD = 0x06054b50;
const CENTRAL_RECORD = 0x02014b50;

const DTYPES: ReadonlyMap<string, DType> = new Map([
  ["<f4", "f32"],
  ["<f8", "f64"],
  ["<f2", "f16"],
  ["<i8", "i64"],
  ["<i4", "i32"],
  ["<i2", "i16"],
  ["<u8", "u64"],
  ["<u4", "u32"],
  ["<u2", "u16"],
  ["|i1", "i8"],
  ["|u1", "u8"],
  ["|b1", "bool"],
]);

/** The arrays of an archive by name, without the `.npy` suffix. */
export function readNpz(path: string): Map<string, Tensor> {
  const file = readFileSync(path);
  const end = file.lastIndexOf(Buffer.from([0x50, 0x4b, 0x05, 0x06]));
  if (end < 0 || file.readUInt32LE(end) !== END_RECORD) throw new Error(`${path} is not a zip archive`);
  const count = file.readUInt16LE(end + 10);
  let at = file.readUInt32LE(end + 16);
  const out = new Map<string, Tensor>();
  for (let i = 0; i < count; i++) {
    if (file.readUInt32LE(at) !== CENTRAL_RECORD) throw new Error(`${path} has a broken directory`);
    const method = file.readUInt16LE(at + 10);
    const packedSize = file.readUInt32LE(at + 20);
    const nameLength = file.readUInt16LE(at + 28);
    const name = file.toString("utf8", at + 46, at + 46 + nameLength);
    const local = file.readUInt32LE(at + 42);
    const start = local + 30 + file.readUInt16LE(local + 26) + file.readUInt16LE(local + 28);
    const packed = file.subarray(start, start + packedSize);
    if (method !== 0 && method !== 8) throw new Error(`${path}: ${name} is packed with method ${method}`);
    out.set(name.replace(/\.npy$/, ""), readNpy(method === 0 ? packed : inflateRawSync(packed), name));
    at += 46 + nameLength + file.readUInt16LE(at + 30) + file.readUInt16LE(at + 32);
  }
  return out;
}

function readNpy(bytes: Buffer, name: string): Tensor {
  if (bytes.toString("latin1", 0, 6) !== "\x93NUMPY") throw new Error(`${name} is not a .npy array`);
  const wide = bytes.readUInt8(6) >= 2;
  const start = wide ? 12 : 10;
  const length = wide ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8);
  const header = bytes.toString("utf8", start, start + length);
  const descr = /'descr':\s*'([^']+)'/.exec(header)?.[1] ?? "";
  const dtype = DTYPES.get(descr);
  const shape = /'shape':\s*\(([^)]*)\)/.exec(header)?.[1];
  if (dtype === undefined || shape === undefined) throw new Error(`${name} has the unknown type ${descr}`);
  const dims = shape
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "")
    .map(Number);
  if (dims.length > 1 && !/'fortran_order':\s*False/.test(header)) throw new Error(`${name} is in Fortran order`);
  return tensorFromBytes(dtype, dims, new Uint8Array(bytes.subarray(start + length)));
}
