/** `mambac sensitivity`: what rounding one kind of parameter, or one layer, costs; and where outliers are. */

import { basename } from "node:path";
import { type Candidate, type ComparedRow, compareCandidates } from "../compare.js";
import { type CompileOptions, type CompilerPasses, type Prepared, prepare, VERSION } from "../compile.js";
import { outlierReport } from "../outliers.js";
import { parseWeightScheme } from "../quant/scheme.js";
import { ROUNDED_PARAMETERS, type RoundedParameter, roundParameter } from "../rewrite/parameter-rounding.js";
import type { Step } from "../rewrite/pipeline.js";
import { semanticOps } from "../rewrite/semantic.js";
import { readCalibration } from "../run/calibration-files.js";
import type { LibraryChoice } from "../run/locate.js";
import { requireTokens } from "../run/plain-model.js";
import { EXIT, type ExitCode } from "../support/errors.js";
import { dataOf, requestedTokenizer } from "./compare.js";
import { comparedDocument, formatLoss } from "./compare-table.js";
import { outlierTable } from "./outlier-table.js";
import { readText } from "./read-text.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatTable } from "./text-table.js";

export interface SensitivityCommandOptions {
  readonly inputs: readonly string[];
  readonly text: string;
  readonly windows: number;
  readonly window: number;
  readonly tokenizer: string | null;
  /** Spelling of how scan and convolution parameters are rounded. */
  readonly parameterScheme: string;
  /** Without data and tables the report of outliers is left out. */
  readonly calibration: NonNullable<CompileOptions["calibration"]> | null;
  /** Files of `mambac calibrate`. */
  readonly tables: readonly string[];
  readonly library: LibraryChoice;
  readonly threads: number;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** What to compile, made by whoever knows the recipes. */
export interface SensitivityPlan {
  readonly reference: Candidate;
  /** One kind of projection rounded at a time, and the embedding. */
  readonly types: readonly Candidate[];
  /** All projections of one layer. */
  readonly layer: (label: string) => Candidate;
  /** Transforms before and after which activations are looked at. */
  readonly transforms: readonly Candidate[];
}

/** Runs the command. Throws what compiling and evaluating throw. */
export async function sensitivityCommand(
  options: SensitivityCommandOptions,
  plan: SensitivityPlan,
  terminal: Terminal,
): Promise<ExitCode> {
  const progress = new Progress(options.quiet ? null : terminal);
  const { inputs, threads } = options;
  const onProgress = (message: string): void => progress.say(message);
  try {
    const text = readText("sensitivity", options.text);
    const tables = options.tables.map((path) => ({ label: path, table: readCalibration(path) }));
    const prepared = await prepare({ inputs, threads, onProgress }, plan.reference.passes);
    requireTokens(prepared.main, "sensitivity");
    const tokenizer = requestedTokenizer(options.tokenizer, inputs, prepared.vocabulary);
    const measured = (candidates: readonly Candidate[]): Promise<ComparedRow[]> =>
      compareCandidates({
        prepared,
        inputs,
        reference: plan.reference,
        candidates,
        texts: [{ name: basename(options.text), text }],
        tokenizer,
        windows: options.windows,
        window: options.window,
        threads,
        library: options.library,
        onProgress,
      });
    const parameters = ROUNDED_PARAMETERS.map((kind) =>
      parameterCandidate(plan.reference, kind, options.parameterScheme),
    );
    // First, as it may be refused.
    const { calibration } = options;
    const outliers =
      calibration === null && tables.length === 0
        ? { rows: [], leftOut: [] }
        : await outlierReport({
            prepared,
            inputs,
            transforms: plan.transforms,
            calibration: calibration === null ? null : { ...calibration, tokenizer },
            tables,
            threads,
            onProgress,
          });
    const kinds = [...plan.types, ...parameters];
    const [float, ...rows] = await measured([...kinds, ...layerLabels(prepared).map(plan.layer)]);
    const [types, layers] = [rows.slice(0, kinds.length), rows.slice(kinds.length)];
    // A kind the model does not have changes nothing at all.
    const present = types.filter(({ meanKlBits }) => meanKlBits > 0);
    progress.done();
    if (outliers.leftOut.length > 0) {
      const left = outliers.leftOut.join(", ");
      terminal.err(
        `activations after ${left} are left out: ${options.tables.join(", ")} cannot tell; give --calib too\n`,
      );
    }
    if (options.json) {
      const document = {
        command: "sensitivity",
        version: VERSION,
        inputs: prepared.sources,
        text: options.text,
        windows: options.windows,
        window: options.window,
        threads,
        float: comparedDocument(float === undefined ? [] : [float])[0] ?? null,
        types: comparedDocument(present),
        layers: comparedDocument(layers),
        calibration: dataOf(calibration ?? undefined),
        tables: options.tables,
        outliers: outliers.rows,
        outliersLeftOut: outliers.leftOut,
      };
      terminal.out(`${JSON.stringify(document, null, 2)}\n`);
    } else {
      const tables = [lossTable("only", present), lossTable("only layer", layers)];
      terminal.out([...tables, ...(outliers.rows.length === 0 ? [] : [outlierTable(outliers.rows)])].join("\n"));
    }
  } finally {
    progress.done();
  }
  return EXIT.ok;
}

/** The float model with one kind of parameter rounded, before anything else happens to it. */
function parameterCandidate(reference: Candidate, kind: RoundedParameter, spelling: string): Candidate {
  const scheme = parseWeightScheme(spelling);
  const rounding: Step = {
    name: `round ${kind}`,
    requires: [],
    establishes: [],
    invalidates: [],
    run: (model) => Promise.resolve(roundParameter(model, kind, scheme)),
  };
  const finish: CompilerPasses["finish"] = (pair) => {
    const steps = reference.passes.finish(pair);
    const at = steps.findIndex(({ name }) => name === "complete-states") + 1;
    return [...steps.slice(0, at), rounding, ...steps.slice(at)];
  };
  return { ...reference, name: `${kind} ${spelling}`, passes: { ...reference.passes, finish } };
}

function layerLabels({ main }: Prepared): string[] {
  return semanticOps(main.graph.nodes).flatMap((op) => (op.kind === "scan" ? [op.layer] : []));
}

/** The costliest first. */
function lossTable(heading: string, rows: readonly ComparedRow[]): string {
  return formatTable([
    [heading, "loss", "KL, bits", "same top"],
    ...rows
      .toSorted((a, b) => b.meanKlBits - a.meanKlBits)
      .map((row) => [
        row.name,
        formatLoss(row.change),
        row.meanKlBits.toExponential(2),
        `${(100 * row.top1Agreement).toFixed(2)} %`,
      ]),
  ]);
}
