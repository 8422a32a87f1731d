/** Arguments of a sweep: how much of it, and from which seed. */

import { EXIT } from "../src/support/errors.js";

/** The numbers of the command line, in order, where fewer are given the rest of `defaults`; anything else ends the script. */
export function numberArguments<const D extends readonly number[]>(defaults: D): { -readonly [K in keyof D]: number } {
  const given = process.argv.slice(2);
  const numbers = defaults.map((usual, at) => (given[at] === undefined ? usual : Number(given[at])));
  const fine = given.length <= defaults.length && numbers.every((value) => value > 0 && Number.isFinite(value));
  if (!fine) {
    process.stderr.write(`at most ${defaults.length} numbers above zero are wanted, not: ${given.join(" ")}\n`);
    process.exit(EXIT.usage);
  }
  return numbers as { -readonly [K in keyof D]: number };
}
