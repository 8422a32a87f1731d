/** A reader of protobuf's text format, as far as configurations use it: knows no field names. */

export type Value = string | number | boolean | Message;

/** Fields in the order they came; each has all of its values. */
export interface Message {
  readonly fields: ReadonlyMap<string, readonly Value[]>;
}

/** Reads a whole text. Throws at the first thing that is not the text format. */
export function readPbtxt(text: string): Message {
  const tokens = [...text.matchAll(/\s+|#[^\n]*|"(?:[^"\\\n]|\\.)*"|[A-Za-z_][\w]*|-?\d+|[{}[\]:,]|[^]/g)]
    .map(([token]) => token)
    .filter((token) => !/^(\s|#)/.test(token));
  const reader = new Reader(tokens);
  const message = reader.message(null);
  reader.end();
  return message;
}

class Reader {
  readonly #tokens: readonly string[];
  #at = 0;

  constructor(tokens: readonly string[]) {
    this.#tokens = tokens;
  }

  end(): void {
    if (this.#at !== this.#tokens.length) throw new Error(`unexpected ${this.#tokens[this.#at]}`);
  }

  /** Fields up to `closing`, or to the end of the text. */
  message(closing: "}" | null): Message {
    const fields = new Map<string, Value[]>();
    while (this.#at < this.#tokens.length && this.#tokens[this.#at] !== closing) {
      const name = this.#next();
      if (!/^[a-z_]+$/.test(name)) throw new Error(`expected a field, got ${name}`);
      const colon = this.#take(":");
      const values = this.#take("[") ? this.#list() : [this.#value(colon)];
      fields.set(name, [...(fields.get(name) ?? []), ...values]);
    }
    return { fields };
  }

  #list(): Value[] {
    const values = [this.#value(true)];
    while (this.#take(",")) values.push(this.#value(true));
    this.#expect("]");
    return values;
  }

  #value(scalars: boolean): Value {
    if (this.#take("{")) {
      const message = this.message("}");
      this.#expect("}");
      return message;
    }
    const token = this.#next();
    if (!scalars) throw new Error(`expected a message, got ${token}`);
    if (token.startsWith('"')) return JSON.parse(token) as string;
    if (token === "true" || token === "false") return token === "true";
    if (/^-?\d+$/.test(token)) return Number(token);
    if (/^[A-Z][A-Z0-9_]*$/.test(token)) return token;
    throw new Error(`expected a value, got ${token}`);
  }

  #next(): string {
    const token = this.#tokens[this.#at++];
    if (token === undefined) throw new Error("the text ends too early");
    return token;
  }

  #take(token: string): boolean {
    const found = this.#tokens[this.#at] === token;
    if (found) this.#at++;
    return found;
  }

  #expect(token: string): void {
    const got = this.#next();
    if (got !== token) throw new Error(`expected ${token}, got ${got}`);
  }
}

/** The one value of a field. Throws when it has none or several. */
export function one(message: Message, field: string): Value {
  const [value, second] = message.fields.get(field) ?? [];
  if (value === undefined || second !== undefined) throw new Error(`expected one ${field}`);
  return value;
}

/** The messages of a repeated field. */
export function messages(message: Message, field: string): Message[] {
  return (message.fields.get(field) ?? []).map((value) => {
    if (typeof value !== "object") throw new Error(`${field} is not a message`);
    return value;
  });
}

/** The one string or name of a field. */
export function word(message: Message, field: string): string {
  const value = one(message, field);
  if (typeof value !== "string") throw new Error(`${field} is not a string`);
  return value;
}
