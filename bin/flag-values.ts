/** Values of flags, checked as they are parsed. */

import { InvalidArgumentError } from "commander";

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("It must be a number.");
  return value;
}

export function integer(text: string): number {
  const value = number(text);
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError("It must be an integer.");
  return value;
}

export function positiveInteger(text: string): number {
  const value = integer(text);
  if (value < 1) throw new InvalidArgumentError("It must be 1 or more.");
  return value;
}

export function integerList(text: string): number[] {
  return text.split(",").map(positiveInteger);
}

export function replayLength(text: string): number {
  const value = positiveInteger(text);
  if (value > 64) throw new InvalidArgumentError("It must be 1 to 64.");
  return value;
}
