/**
 * Damaged files: seeded mutations of bytes, for fuzzing readers.
 *
 * Blind mutations mostly break a length and with it everything behind it, so half of the mutations follow the protobuf
 * nesting to a random place, change something there and mend the lengths around it.
 */

import { Random } from "../../src/support/random.js";
import { varint } from "./wire.js";

/** A source of integers below `limit`. */
export type Draw = (limit: number) => number;

/** Seeded integers. */
export function seededDraw(seed: number): Draw {
  const random = new Random(seed);
  return (limit) => random.integer(limit);
}

/** `bytes` with one to three mutations; `donor` is where foreign pieces come from. */
export function mutate(bytes: Uint8Array, donor: Uint8Array, random: Draw): Uint8Array {
  let out: Uint8Array = bytes.slice();
  const rounds = 1 + random(3);
  const deep = random(2) === 0;
  for (let i = 0; i < rounds; i++) out = deep ? mutateField(out, donor, random) : mutateBytes(out, donor, random);
  return out;
}

function mutateBytes(bytes: Uint8Array, donor: Uint8Array, random: Draw): Uint8Array {
  const at = random(bytes.length + 1);
  const length = 1 + random(random(4) === 0 ? 4096 : 16);
  switch (random(7)) {
    case 0:
      return flip(bytes, at, 1 + random(8), random);
    case 1:
      return bytes.subarray(0, at);
    case 2:
      return splice(bytes, at, length, new Uint8Array(0));
    case 3:
      return splice(bytes, at, 0, piece(donor, length, random));
    case 4:
      return splice(bytes, at, length, piece(donor, length, random));
    case 5:
      return splice(bytes, at, 0, piece(bytes, length, random));
    default: {
      // Long varints and extreme lengths, where readers go wrong.
      const extreme = Uint8Array.from({ length: 1 + random(10) }, () => (random(2) === 0 ? 255 : 127));
      return splice(bytes, at, random(6), extreme);
    }
  }
}

function flip(bytes: Uint8Array, at: number, count: number, random: Draw): Uint8Array {
  const out = bytes.slice();
  for (let i = 0; i < count && out.length > 0; i++) {
    const place = i === 0 ? Math.min(at, out.length - 1) : random(out.length);
    out[place] = (out[place] ?? 0) ^ (1 << random(8));
  }
  return out;
}

function piece(from: Uint8Array, length: number, random: Draw): Uint8Array {
  const start = random(Math.max(1, from.length - length));
  return from.subarray(start, start + length);
}

function splice(bytes: Uint8Array, at: number, remove: number, insert: Uint8Array): Uint8Array {
  const tail = bytes.subarray(Math.min(bytes.length, at + remove));
  return join([bytes.subarray(0, at), insert, tail]);
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

interface WireField {
  readonly number: number;
  readonly wireType: number;
  /** Without tag and length. */
  readonly content: Uint8Array;
}

/** Changes something inside the message, lengths mended; bytes that are no message are mutated blindly. */
function mutateField(bytes: Uint8Array, donor: Uint8Array, random: Draw): Uint8Array {
  const fields = parse(bytes);
  if (fields === null || fields.length === 0) return mutateBytes(bytes, donor, random);
  const at = random(4) === 0 ? random(fields.length) : bySize(fields, random);
  const field = fields[at];
  if (field === undefined) return mutateBytes(bytes, donor, random);
  const others = fields.toSpliced(at, 1);
  const replaced = (changed: Partial<WireField>): WireField[] => fields.with(at, { ...field, ...changed });
  if (field.wireType === 2 && random(4) !== 0) {
    return build(replaced({ content: mutateField(field.content, donor, random) }));
  }
  switch (random(6)) {
    case 0:
      return build(others);
    case 1:
      return build(others.toSpliced(random(others.length + 1), 0, field, field));
    case 2:
      return build(replaced({ number: 1 + random(30) }));
    case 3:
      return build(others.toSpliced(random(others.length + 1), 0, field));
    case 4:
      return build(replaced({ content: fields[random(fields.length)]?.content ?? field.content }));
    default: {
      const values = [0, 1, -1, 5, 2 ** 31, 2 ** 53, random(2 ** 32)];
      const content = Uint8Array.from(varint(values[random(values.length)] ?? 0));
      return build(replaced({ wireType: 0, content }));
    }
  }
}

/** A field drawn by its share of the bytes: the graph rather than the version. */
function bySize(fields: readonly WireField[], random: Draw): number {
  let left = random(fields.reduce((sum, field) => sum + field.content.length, 0));
  const at = fields.findIndex((field) => {
    left -= field.content.length;
    return left < 0;
  });
  return Math.max(0, at);
}

/** The fields of a message, or null when the bytes are none. */
function parse(bytes: Uint8Array): WireField[] | null {
  const fields: WireField[] = [];
  let at = 0;
  const number = (): number => {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = bytes[at++];
      if (byte === undefined) return -1;
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
    return -1;
  };
  while (at < bytes.length) {
    const tag = number();
    const wireType = tag % 8;
    if (tag < 8 || tag > 800) return null;
    let start = at;
    if (wireType === 0) number();
    else if (wireType === 1) at += 8;
    else if (wireType === 5) at += 4;
    else if (wireType === 2) {
      const length = number();
      start = at;
      at += Math.max(0, length);
    } else return null;
    if (at > bytes.length) return null;
    fields.push({ number: Math.floor(tag / 8), wireType, content: bytes.subarray(start, at) });
  }
  return fields;
}

function build(fields: readonly WireField[]): Uint8Array {
  return join(
    fields.flatMap(({ number, wireType, content }) => [
      Uint8Array.from([...varint(number * 8 + wireType), ...(wireType === 2 ? varint(content.length) : [])]),
      content,
    ]),
  );
}
