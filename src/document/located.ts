/** A document as data that remembers where everything was written. */

/** Counted from 1. */
export interface Place {
  readonly line: number;
  readonly column: number;
}

export type Located =
  | { readonly kind: "scalar"; readonly value: string | number | boolean | null; readonly at: Place }
  | { readonly kind: "list"; readonly items: readonly Located[]; readonly at: Place }
  | { readonly kind: "map"; readonly entries: readonly LocatedEntry[]; readonly at: Place };

export interface LocatedEntry {
  readonly key: string;
  readonly keyAt: Place;
  readonly value: Located;
}

/** What is wrong, where, and what would be right. */
export interface Problem {
  readonly at: Place;
  readonly message: string;
}

/** Numbers, texts and truth values in lists and maps; what JSON can say. */
export type Plain = string | number | boolean | null | readonly Plain[] | { readonly [key: string]: Plain };
