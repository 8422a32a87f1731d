/** `--recipe auto`: measures recipes on text that was held out of calibration, and takes one. */

import { openCalibration } from "../calibration.js";
import { type Budget, bytesOf, choose } from "../choose.js";
import { type Candidate, type ComparedRow, compareCandidates } from "../compare.js";
import { type CompileOptions, prepare } from "../compile.js";
import type { LibraryChoice } from "../run/locate.js";
import { EXIT, MambacError } from "../support/errors.js";
import { comparedDocument, comparedTable, formatLoss } from "./compare-table.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatBytes } from "./text-table.js";

export interface AutoOptions {
  readonly inputs: readonly string[];
  readonly calibration: NonNullable<CompileOptions["calibration"]> | null;
  readonly budget: Budget;
  /** Is the model without any recipe, as it would be written, the reference itself? Else it is one of the candidates. */
  readonly referenceIsChoice: boolean;
  /** What the candidates are measured in, where it is not what everybody expects. */
  readonly note: string | null;
  readonly library: LibraryChoice;
  readonly threads: number;
  readonly quiet: boolean;
}

/** What was chosen, and the evidence. The text has no path and no time in it: it goes into the package. */
export interface AutoChoice {
  readonly name: string;
  /** A sentence for people, and the table behind it. */
  readonly text: string;
  readonly document: object;
  /** The data the measured model was calibrated with: compiling with them gives that very model. */
  readonly calibration: NonNullable<CompileOptions["calibration"]>;
}

/** Tokens of a held-out passage are worth counting from here on. */
const SHORTEST = 16;

/**
 * Chooses among `candidates`, and the reference where that is a choice. The same inputs give the same choice. Throws `auto/data` (exit
 * code 5) where there is nothing to judge by, and `auto/budget` (exit code 3) where no recipe keeps the budget.
 */
export async function chooseRecipe(
  options: AutoOptions,
  reference: Candidate,
  candidates: readonly Candidate[],
  terminal: Terminal,
): Promise<AutoChoice> {
  if (options.calibration === null) {
    throw new MambacError(
      "auto/data",
      "the recipe auto measures recipes on calibration text that it holds out: give --calib FILE",
      EXIT.calibration,
    );
  }
  const progress = new Progress(options.quiet ? null : terminal);
  const { inputs, threads, library } = options;
  const onProgress = (message: string): void => progress.say(message);
  try {
    const prepared = await prepare({ inputs, threads, onProgress }, reference.passes);
    const data = options.calibration;
    const sequences = await heldOut(data, prepared.main, inputs);
    const calibration = { ...data, part: "calibration" as const };
    const rows = await compareCandidates({
      prepared,
      inputs,
      reference,
      candidates,
      texts: [{ name: "held out", text: { sequences } }],
      window: (sequences[0]?.length ?? 0) - 1,
      windows: sequences.length,
      calibration,
      threads,
      library,
      onProgress,
    });
    const choices = options.referenceIsChoice ? rows : rows.slice(1);
    const choice = choose(choices, options.budget);
    const table = comparedTable(rows);
    if (choice === null) throw noneFits(choices, options.budget, table);
    const length = (sequences[0]?.length ?? 0) - 1;
    const text = `auto took ${choice.row.name}: ${choice.why}; budget: ${budgetText(options.budget)}; measured on ${sequences.length} passages of ${length} tokens held out of the calibration data${options.note === null ? "" : `; ${options.note}`}`;
    return {
      name: choice.row.name,
      text: `${text}\n${table}`,
      document: { chosen: choice.row.name, why: choice.why, budget: options.budget, rows: comparedDocument(rows) },
      calibration,
    };
  } finally {
    progress.done();
  }
}

/** Held-out sequences, cut to one length: half of them are at least as long. */
async function heldOut(
  data: NonNullable<CompileOptions["calibration"]>,
  model: Parameters<typeof openCalibration>[1],
  inputs: readonly string[],
): Promise<Int32Array[]> {
  const dataset = await openCalibration({ ...data, part: "held-out" }, model, inputs);
  try {
    const all: Int32Array[] = [];
    for await (const { tokens } of dataset.sequences()) all.push(tokens);
    const lengths = all.map(({ length }) => length).sort((a, b) => a - b);
    const length = lengths[Math.floor(lengths.length / 2)] ?? 0;
    if (length < SHORTEST) {
      throw new MambacError(
        "auto/data",
        `the sequences held out have ${length} tokens, too few to judge by: give longer texts`,
        EXIT.calibration,
      );
    }
    return all.filter((tokens) => tokens.length >= length).map((tokens) => tokens.slice(0, length));
  } finally {
    dataset.close();
  }
}

function budgetText({ loss, bytes }: Budget): string {
  const parts = [
    ...(loss === null ? [] : [`a loss of at most ${formatLoss(loss).replace("+", "")}`]),
    ...(bytes === null ? [] : [`at most ${formatBytes(bytes)} for file and state`]),
  ];
  return parts.join(" and ") || "none";
}

function noneFits(rows: readonly ComparedRow[], budget: Budget, table: string): MambacError {
  const smallest = rows.toSorted((a, b) => bytesOf(a) - bytesOf(b))[0];
  const best = rows.toSorted((a, b) => a.change - b.change)[0];
  const hint =
    smallest === undefined || best === undefined
      ? ""
      : ` The least loss is ${formatLoss(best.change)} (${best.name}), the smallest ${formatBytes(bytesOf(smallest))} (${smallest.name}).`;
  return new MambacError(
    "auto/budget",
    `no recipe keeps the budget (${budgetText(budget)}).${hint}\n${table}`,
    EXIT.belowGate,
  );
}
