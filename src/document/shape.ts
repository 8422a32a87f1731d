/**
 * What a document may hold, written once: a reader that says what is wrong in which line, and a JSON Schema for editors.
 * The type a record is for is checked by the compiler, so neither can forget a field.
 */

import { closestWord } from "../support/closest-word.js";
import { MambacError } from "../support/errors.js";
import type { Located, Place, Plain, Problem } from "./located.js";
import { parseYaml } from "./yaml.js";

export interface Shape<T> {
  readonly schema: { readonly [key: string]: Plain };
  /** The value, or null where a problem was told. */
  readonly read: (from: Located, problems: Problem[]) => { readonly value: T } | null;
}

export interface Field<T> {
  readonly shape: Shape<T>;
  readonly description: string;
  readonly absent: { readonly kind: "required" | "optional" } | { readonly kind: "default"; readonly value: T };
}

/** The fields of a type, each with the shape of its values. */
export type Fields<T> = { readonly [K in keyof T]-?: Field<Exclude<T[K], undefined>> };

/** A field that must be there. */
export function required<T>(shape: Shape<T>, description: string): Field<T> {
  return { shape, description, absent: { kind: "required" } };
}

/** A field that may be left out and is then left out of the value too. */
export function optional<T>(shape: Shape<T>, description: string): Field<T> {
  return { shape, description, absent: { kind: "optional" } };
}

/** A field that has a value when it is left out. */
export function preset<T>(shape: Shape<T>, value: T, description: string): Field<T> {
  return { shape, description, absent: { kind: "default", value } };
}

/** A map with these keys and no others. `check` looks at the whole and says what is wrong with it, or null. */
export function record<T>(fields: Fields<T>, check: (value: T) => string | null = () => null): Shape<T> {
  const all = Object.entries<Field<unknown>>(fields);
  return {
    schema: recordSchema(all),
    read: (from, problems) => {
      if (from.kind !== "map") return refuse(problems, from.at, `${nameOf(from)} where a map was expected`);
      const before = problems.length;
      for (const { key, keyAt } of from.entries) {
        if (!all.some(([name]) => name === key)) {
          const names = all.map(([name]) => name);
          problems.push({ at: keyAt, message: `there is no key ${quoted(key)} here; ${choices(key, names)}` });
        }
      }
      const parts: Record<string, unknown> = {};
      for (const [name, field] of all) {
        const entry = from.entries.find(({ key }) => key === name);
        if (entry !== undefined) parts[name] = field.shape.read(entry.value, problems)?.value;
        else if (field.absent.kind === "default") parts[name] = field.absent.value;
        else if (field.absent.kind === "required") {
          problems.push({ at: from.at, message: `the key '${name}' is missing: ${field.description}` });
        }
      }
      if (problems.length > before) return null;
      const value = parts as T;
      const wrong = check(value);
      return wrong === null ? { value } : refuse(problems, from.at, wrong);
    },
  };
}

function recordSchema(fields: readonly (readonly [string, Field<unknown>])[]): Shape<unknown>["schema"] {
  const properties = fields.map(([name, { shape, description, absent }]) => [
    name,
    { ...shape.schema, description, ...(absent.kind === "default" ? { default: plain(absent.value) } : {}) },
  ]);
  return {
    type: "object",
    properties: Object.fromEntries(properties) as { readonly [key: string]: Plain },
    required: fields.flatMap(([name, { absent }]) => (absent.kind === "required" ? [name] : [])),
    additionalProperties: false,
  };
}

export function list<T>(item: Shape<T>, options: { readonly least?: number } = {}): Shape<readonly T[]> {
  const { least = 0 } = options;
  return {
    schema: { type: "array", items: item.schema, ...(least === 0 ? {} : { minItems: least }) },
    read: (from, problems) => {
      if (from.kind !== "list") return refuse(problems, from.at, `${nameOf(from)} where a list was expected`);
      if (from.items.length < least) return refuse(problems, from.at, `the list needs ${least} or more entries`);
      const items = from.items.map((entry) => item.read(entry, problems));
      return items.every((entry) => entry !== null) ? { value: items.map(({ value }) => value) } : null;
    },
  };
}

/** One of the words. */
export function choice<T extends string>(words: readonly T[]): Shape<T> {
  return {
    schema: { enum: words },
    read: (from, problems) => {
      const value = words.find((word) => from.kind === "scalar" && from.value === word);
      if (value !== undefined) return { value };
      const text = from.kind === "scalar" ? String(from.value) : "";
      return refuse(problems, from.at, `${nameOf(from)} is not known here; ${choices(text, words)}`);
    },
  };
}

/** A text. `check` throws `MambacError` for one that has no meaning; `pattern` says the same for editors. */
export function text(
  options: { readonly pattern?: string; readonly check?: (value: string) => void } = {},
): Shape<string> {
  return {
    schema: { type: "string", ...(options.pattern === undefined ? {} : { pattern: options.pattern }) },
    read: (from, problems) => {
      if (from.kind !== "scalar" || typeof from.value !== "string")
        return refuse(problems, from.at, `${nameOf(from)} where a text was expected`);
      try {
        options.check?.(from.value);
      } catch (cause) {
        if (cause instanceof MambacError) return refuse(problems, from.at, cause.message);
        throw cause;
      }
      return { value: from.value };
    },
  };
}

/** A finite number within bounds: `least` and `most` are included, `above` is not. */
export function quantity(bounds: {
  readonly least?: number;
  readonly most?: number;
  readonly above?: number;
  /** Integers only. */
  readonly whole?: boolean;
}): Shape<number> {
  const { least, most, above, whole = false } = bounds;
  return {
    schema: {
      type: whole ? "integer" : "number",
      ...(least === undefined ? {} : { minimum: least }),
      ...(above === undefined ? {} : { exclusiveMinimum: above }),
      ...(most === undefined ? {} : { maximum: most }),
    },
    read: (from, problems) => {
      const value = from.kind === "scalar" ? from.value : null;
      const fits =
        typeof value === "number" &&
        Number.isFinite(value) &&
        (!whole || Number.isInteger(value)) &&
        value >= (least ?? value) &&
        value <= (most ?? value) &&
        value > (above ?? Number.NEGATIVE_INFINITY);
      if (fits) return { value };
      const limits = [
        ...(least === undefined ? [] : [`from ${least}`]),
        ...(above === undefined ? [] : [`above ${above}`]),
        ...(most === undefined ? [] : [`up to ${most}`]),
      ];
      return refuse(
        problems,
        from.at,
        `${nameOf(from)} where ${whole ? "an integer" : "a number"} ${limits.join(" ")} was expected`,
      );
    },
  };
}

export const truth: Shape<boolean> = {
  schema: { type: "boolean" },
  read: (from, problems) =>
    from.kind === "scalar" && typeof from.value === "boolean"
      ? { value: from.value }
      : refuse(problems, from.at, `${nameOf(from)} where true or false was expected`),
};

/** The shape, or null. */
export function nullable<T>(shape: Shape<T>): Shape<T | null> {
  return {
    schema: { anyOf: [shape.schema, { type: "null" }] },
    read: (from, problems) =>
      from.kind === "scalar" && from.value === null ? { value: null } : shape.read(from, problems),
  };
}

/** Reads a YAML or JSON text. Throws `document/invalid` with a line for each problem, as `label:line:column: message`. */
export function readDocument<T>(source: string, shape: Shape<T>, label: string): T {
  const parsed = parseYaml(source);
  const problems = [...parsed.problems];
  const read = parsed.root === null ? null : shape.read(parsed.root, problems);
  if (read !== null && problems.length === 0) return read.value;
  const lines = problems
    .toSorted((a, b) => a.at.line - b.at.line || a.at.column - b.at.column)
    .map(({ at, message }) => `${label}:${at.line}:${at.column}: ${message}`);
  throw new MambacError("document/invalid", lines.join("\n"));
}

function refuse(problems: Problem[], at: Place, message: string): null {
  problems.push({ at, message });
  return null;
}

function nameOf(from: Located): string {
  if (from.kind !== "scalar") return from.kind === "list" ? "a list" : "a map";
  return from.value === null ? "nothing" : typeof from.value === "string" ? quoted(from.value) : String(from.value);
}

const quoted = (word: string): string => `'${word.length > 60 ? `${word.slice(0, 57)}...` : word}'`;

function choices(word: string, words: readonly string[]): string {
  const meant = closestWord(word, words);
  return `${meant === null ? "" : `did you mean '${meant}'? `}known: ${words.join(", ")}`;
}

/** A value of one of these shapes is plain data. */
function plain(value: unknown): Plain {
  return JSON.parse(JSON.stringify(value)) as Plain;
}
