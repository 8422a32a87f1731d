/** Protobuf wire bytes by hand, so that tests of the reader do not lean on our own encoder. */

/** An unsigned varint. */
export function varint(value: number | bigint): number[] {
  const out: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  while (rest > 127n) {
    out.push(Number(rest & 127n) | 128);
    rest >>= 7n;
  }
  return [...out, Number(rest)];
}

/** A varint field. */
export function intField(number: number, value: number | bigint): number[] {
  return [...varint((BigInt(number) << 3n) | 0n), ...varint(value)];
}

/** A length-delimited field: a text, bytes or a message. */
export function field(number: number, content: string | readonly number[] | Uint8Array): number[] {
  const bytes = typeof content === "string" ? [...new TextEncoder().encode(content)] : [...content];
  return [...varint((BigInt(number) << 3n) | 2n), ...varint(bytes.length), ...bytes];
}

/** A model that copies x to y, with more bytes in its graph, its node and itself. */
export function tinyModel(
  more: {
    readonly model?: readonly number[];
    readonly graph?: readonly number[];
    readonly node?: readonly number[];
    readonly opset?: number;
    readonly irVersion?: number;
  } = {},
): Uint8Array {
  const node = [...field(1, "x"), ...field(2, "y"), ...field(4, "Identity"), ...(more.node ?? [])];
  const type = field(1, [...intField(1, 1), ...field(2, field(1, intField(1, 2)))]);
  const graph = [
    ...field(1, node),
    ...field(2, "tiny"),
    ...(more.graph ?? []),
    ...field(11, [...field(1, "x"), ...field(2, type)]),
    ...field(12, [...field(1, "y"), ...field(2, type)]),
  ];
  const opset = field(8, intField(2, more.opset ?? 20));
  return Uint8Array.from([...intField(1, more.irVersion ?? 10), ...field(7, graph), ...opset, ...(more.model ?? [])]);
}
