/** Flags spelled with underscores, as in Python tools, mean the same as with dashes. */

import type { Command, Option } from "commander";

/** `argv` with known long flags in their own spelling; values and unknown flags stay as they are. */
export function kebabFlags(argv: readonly string[], program: Command): string[] {
  const options = new Map<string, Option>();
  for (const command of [program, ...program.commands.flatMap((own) => [own, ...own.commands])]) {
    for (const option of command.options) {
      for (const name of [option.long, option.short]) if (name !== undefined) options.set(name, option);
    }
  }
  const out: string[] = [];
  let isValue = false;
  for (const [at, argument] of argv.entries()) {
    if (argument === "--" && !isValue) return [...out, ...argv.slice(at)];
    const [flag = "", ...value] = argument.split("=");
    const name = flag.startsWith("--") ? flag.replaceAll("_", "-") : flag;
    const option: Option | undefined = isValue ? undefined : options.get(name);
    out.push(option === undefined ? argument : [name, ...value].join("="));
    isValue = option?.required === true && value.length === 0;
  }
  return out;
}
