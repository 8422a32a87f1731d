/** Token ids in NumPy and safetensors files: integer arrays of rank 1 (one stream) or 2 (one sequence a row). */

import { inflateRawSync } from "node:zlib";
import { type DType, dtypeBits, elementCount } from "../ir/types.js";
import { checkedIds, type DataFile, type Document, dataError, type TokenSource } from "./dataset-source.js";

/** An array whose bytes are read on demand: little endian, row major. */
interface IdArray {
  readonly label: string;
  /** The element type as the format spells it; `dtype` is null for types mambac does not know. */
  readonly spelling: string;
  readonly dtype: DType | null;
  readonly shape: readonly number[];
  read(start: number, length: number): Uint8Array;
}

/** Names by which an archive's array of ids is found. */
const ID_NAMES = ["input_ids", "token_ids", "tokens", "ids"];

/** A .npy file. Throws `dataset/...` for pickles, other types and ranks. */
export function npySource(file: DataFile, vocabulary: number, length: number): TokenSource {
  return arraySource(
    npyArray(file.path, file.size, (start, count) => file.read(start, count)),
    vocabulary,
    length,
  );
}

/** The ids of a .npz archive: its array of a usual name, or its only integer array of rank 1 or 2. */
export function npzSource(file: DataFile, vocabulary: number, length: number): TokenSource {
  const arrays = zipEntries(file)
    .filter((entry) => entry.name.endsWith(".npy"))
    .map((entry): [string, () => IdArray] => [
      entry.name.replace(/\.npy$/, ""),
      () => npyArray(`${file.path}: ${entry.name}`, entry.size, entry.open()),
    ]);
  return arraySource(chooseArray(file.path, new Map(arrays)), vocabulary, length);
}

const SAFETENSORS_DTYPES: Readonly<Record<string, DType>> = {
  I64: "i64",
  I32: "i32",
  I16: "i16",
  I8: "i8",
  U64: "u64",
  U32: "u32",
  U16: "u16",
  U8: "u8",
};

/** The ids of a .safetensors file, chosen as in an archive. */
export function safetensorsSource(file: DataFile, vocabulary: number, length: number): TokenSource {
  const damaged = (what: string): Error => dataError("damaged", `${file.path} is no safetensors file: ${what}`);
  if (file.size < 8) throw damaged("it is too short");
  const headerLength = Number(view(file.read(0, 8)).getBigUint64(0, true));
  if (headerLength > file.size - 8) throw damaged("its header is longer than the file");
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder().decode(file.read(8, headerLength)));
  } catch {
    throw damaged("its header is not JSON");
  }
  const arrays = new Map<string, () => IdArray>();
  for (const [name, entry] of Object.entries(header ?? {})) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: offsets } = entry as Record<string, unknown>;
    if (typeof dtype !== "string" || !isNumbers(shape) || !isNumbers(offsets)) throw damaged(`bad entry ${name}`);
    const first = 8 + headerLength + (offsets[0] ?? 0);
    arrays.set(name, () => ({
      label: `${file.path}: ${name}`,
      spelling: dtype,
      dtype: SAFETENSORS_DTYPES[dtype] ?? null,
      shape,
      read: (start, count) => file.read(first + start, count),
    }));
  }
  return arraySource(chooseArray(file.path, arrays), vocabulary, length);
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((entry) => typeof entry === "number");
}

function chooseArray(path: string, arrays: ReadonlyMap<string, () => IdArray>): IdArray {
  for (const name of ID_NAMES) {
    const open = arrays.get(name);
    if (open !== undefined) return open();
  }
  const fitting = [...arrays.values()].map((open) => open()).filter((array) => problemOf(array) === null);
  const [only] = fitting;
  if (only !== undefined && fitting.length === 1) return only;
  throw dataError(
    "array",
    `${path} holds ${[...arrays.keys()].join(", ") || "no array"}; name the array of token ids ${ID_NAMES[0]}`,
  );
}

/** Why an array cannot be token ids, or null. */
function problemOf(array: IdArray): { readonly code: string; readonly message: string } | null {
  if (array.dtype === null) {
    const message = `its elements are ${array.spelling}, but token ids are integers (int64 or int32, little endian)`;
    return { code: "dtype", message };
  }
  const rank = array.shape.length;
  if (rank === 1 || rank === 2) return null;
  return { code: "rank", message: `its shape is [${array.shape.join(", ")}], but ids have rank 1 or 2` };
}

function arraySource(array: IdArray, vocabulary: number, length: number): TokenSource {
  const problem = problemOf(array);
  if (problem !== null) throw dataError(problem.code, `${array.label}: ${problem.message}`);
  const [rows, width] = array.shape.length === 2 ? array.shape : [1, array.shape[0]];
  const perRow = Math.ceil((width ?? 0) / length);
  const { dtype } = array;
  const bytes = (dtypeBits(dtype ?? "i64") ?? 0) / 8;
  return {
    joined: false,
    blocks: (rows ?? 0) * perRow,
    read: (block) => {
      const row = Math.floor(block / perRow);
      const first = (block % perRow) * length;
      const count = Math.min(length, (width ?? 0) - first);
      const document: Document = () => {
        const raw = array.read((row * (width ?? 0) + first) * bytes, count * bytes);
        return checkedIds(integers(dtype ?? "i64", raw), vocabulary, () => `${array.label}, row ${row} from ${first}`);
      };
      return Promise.resolve([document]);
    },
  };
}

function integers(dtype: DType, bytes: Uint8Array): ArrayLike<number | bigint> {
  const buffer = bytes.slice().buffer;
  switch (dtype) {
    case "i64":
      return new BigInt64Array(buffer);
    case "u64":
      return new BigUint64Array(buffer);
    case "i32":
      return new Int32Array(buffer);
    case "u32":
      return new Uint32Array(buffer);
    case "i16":
      return new Int16Array(buffer);
    case "u16":
      return new Uint16Array(buffer);
    case "i8":
      return new Int8Array(buffer);
    default:
      return new Uint8Array(buffer);
  }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Float32 items of one shape in a .npy file [count, ...item], read one by one. Throws `dataset/...` for anything else. */
export function npyItems(
  file: DataFile,
  item: readonly number[],
): { readonly count: number; readonly read: (at: number) => Uint8Array } {
  const array = npyArray(file.path, file.size, (start, length) => file.read(start, length));
  const [count = 0, ...rest] = array.shape;
  const wanted = `float32 [count, ${item.join(", ")}]`;
  if (array.spelling !== "<f4" || rest.length !== item.length || rest.some((size, axis) => size !== item[axis])) {
    throw dataError(
      "item",
      `${array.label} holds ${array.spelling} [${array.shape.join(", ")}]; the model reads ${wanted}`,
    );
  }
  const bytes = 4 * elementCount(item);
  return { count, read: (at) => array.read(at * bytes, bytes) };
}

const NPY_DTYPES: Readonly<Record<string, DType>> = {
  "<i8": "i64",
  "<i4": "i32",
  "<i2": "i16",
  "|i1": "i8",
  "<u8": "u64",
  "<u4": "u32",
  "<u2": "u16",
  "|u1": "u8",
};

/** Source: the NumPy enhancement proposal 1 (format versions 1.0 to 3.0). */
function npyArray(label: string, size: number, read: (start: number, count: number) => Uint8Array): IdArray {
  const damaged = (what: string): Error => dataError("damaged", `${label} is no .npy array: ${what}`);
  if (size < 10) throw damaged("it is too short");
  const head = read(0, Math.min(12, size));
  if (new TextDecoder("latin1").decode(head.subarray(0, 6)) !== "\x93NUMPY") throw damaged("it starts otherwise");
  const wide = (head[6] ?? 0) >= 2;
  const start = wide ? 12 : 10;
  const length = wide ? view(head).getUint32(8, true) : view(head).getUint16(8, true);
  if (start + length > size) throw damaged("its header is longer than the file");
  const header = new TextDecoder().decode(read(start, length));
  const descr = /'descr':\s*(?:'([^']*)'|(\[))/.exec(header);
  const dims = /'shape':\s*\(([^)]*)\)/.exec(header)?.[1];
  if (descr === null || dims === undefined) throw damaged("its header lacks the type or the shape");
  const spelling = descr[1] ?? "a record";
  if (spelling.includes("O")) {
    throw dataError(
      "pickle",
      `${label} holds pickled Python objects, which mambac never loads; save an int64 array with allow_pickle=False`,
    );
  }
  const shape = dims
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "")
    .map(Number);
  if (shape.length > 1 && /'fortran_order':\s*True/.test(header)) {
    throw dataError("order", `${label} is in Fortran order; save numpy.ascontiguousarray(ids)`);
  }
  const dtype = NPY_DTYPES[spelling] ?? null;
  const needed = dtype === null ? 0 : (elementCount(shape) * (dtypeBits(dtype) ?? 0)) / 8;
  if (start + length + needed > size) throw damaged(`it ends before its ${elementCount(shape)} elements do`);
  return { label, spelling, dtype, shape, read: (at, count) => read(start + length + at, count) };
}

interface ZipEntry {
  readonly name: string;
  readonly size: number;
  /** Reads of the unpacked content; a deflated entry is unpacked whole. */
  open(): (start: number, count: number) => Uint8Array;
}

/** Source: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16. Archives of 4 GiB and more are refused. */
function zipEntries(file: DataFile): ZipEntry[] {
  const tailLength = Math.min(file.size, 65_557);
  const tail = file.read(file.size - tailLength, tailLength);
  const end = Buffer.from(tail.buffer).lastIndexOf(Buffer.from([0x50, 0x4b, 5, 6]));
  if (end < 0 || end + 22 > tailLength) throw dataError("damaged", `${file.path} is no .npz archive`);
  const count = view(tail).getUint16(end + 10, true);
  const size = view(tail).getUint32(end + 12, true);
  const first = view(tail).getUint32(end + 16, true);
  if (first === 0xffffffff || count === 0xffff) {
    throw dataError("zip64", `${file.path} is a zip64 archive; save the ids as .npy`);
  }
  const directory = file.read(first, size);
  const fields = view(directory);
  const entries: ZipEntry[] = [];
  for (let i = 0, at = 0; i < count; i++) {
    if (at + 46 > size || fields.getUint32(at, true) !== 0x02014b50) {
      throw dataError("damaged", `${file.path} has a broken directory`);
    }
    const method = fields.getUint16(at + 10, true);
    const [packed, unpacked] = [fields.getUint32(at + 20, true), fields.getUint32(at + 24, true)];
    const [nameLength, extra, comment] = [28, 30, 32].map((field) => fields.getUint16(at + field, true));
    const local = fields.getUint32(at + 42, true);
    const name = new TextDecoder().decode(directory.subarray(at + 46, at + 46 + (nameLength ?? 0)));
    entries.push({ name, size: unpacked, open: () => openEntry(file, { name, method, packed, unpacked, local }) });
    at += 46 + (nameLength ?? 0) + (extra ?? 0) + (comment ?? 0);
  }
  return entries;
}

function openEntry(
  file: DataFile,
  entry: { readonly name: string; readonly method: number; packed: number; unpacked: number; local: number },
): (start: number, count: number) => Uint8Array {
  const { name, method, packed, unpacked, local } = entry;
  const damaged = dataError("damaged", `${file.path}: ${name} cannot be unpacked`);
  if (unpacked === 0xffffffff || local === 0xffffffff) {
    throw dataError("zip64", `${file.path}: ${name} is a zip64 entry; save the ids as .npy`);
  }
  const head = view(file.read(local, 30));
  const start = local + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  if (method === 0) return (at, count) => file.read(start + at, count);
  if (method !== 8) throw dataError("damaged", `${file.path}: ${name} is packed by an unknown method (${method})`);
  let content: Uint8Array;
  try {
    // A copy of its own: slices of a Buffer would share memory.
    content = Uint8Array.from(inflateRawSync(file.read(start, packed), { maxOutputLength: Math.max(1, unpacked) }));
  } catch {
    throw damaged;
  }
  return (at, count) => {
    if (at + count > content.byteLength) throw damaged;
    return content.slice(at, at + count);
  };
}
