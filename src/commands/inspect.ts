/** `mambac inspect`: the table of layers, of sources and of compiled files, without writing anything. */

import { statSync } from "node:fs";
import { compile, stateText, VERSION } from "../compile.js";
import type { Model } from "../ir/graph.js";
import { readModel } from "../onnx/read.js";
import type { StateChoice } from "../rewrite/semantic.js";
import { EXIT, type ExitCode } from "../support/errors.js";
import type { PassLibrary } from "./compile.js";
import { compiledRows, isCompiled } from "./compiled-rows.js";
import { formatLayers, formatRemarks, formatStateTotal, layerDocument, stateTotals } from "./layer-table.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatBytes, formatFacts } from "./text-table.js";

export interface InspectCommandOptions {
  /** A compiled file, or what `compile` takes. */
  readonly inputs: readonly string[];
  /** The format whose bytes the table shows for a source. */
  readonly state: StateChoice;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Runs the command. Throws what `compile` and `readModel` throw. */
export async function inspectCommand(
  options: InspectCommandOptions,
  library: PassLibrary,
  terminal: Terminal,
): Promise<ExitCode> {
  const [only] = options.inputs;
  if (only !== undefined && options.inputs.length === 1 && isFile(only)) {
    const { model, warnings } = readModel(only);
    if (isCompiled(model)) {
      inspectCompiled(only, model, warnings, options, terminal);
      return EXIT.ok;
    }
  }
  const progress = new Progress(options.quiet ? null : terminal);
  try {
    const report = await compile(
      {
        inputs: options.inputs,
        output: null,
        state: options.state,
        onProgress: (message) => progress.say(message),
      },
      library,
    );
    const { rows, remarks, warnings } = report;
    const { before, after } = stateTotals(rows);
    if (options.json) {
      tell(terminal, {
        command: "inspect",
        version: VERSION,
        kind: "source",
        inputs: report.inputs,
        state: report.state,
        layers: rows.map(layerDocument),
        totals: { weightBytes: report.weightBytes, stateBytesBefore: before, stateBytesAfter: after },
        remarks,
        warnings,
      });
    } else {
      const sources = report.inputs.map((source): [string, string] => [
        source.role === "model" ? "source" : source.role,
        `${source.path} (${formatBytes(source.bytes)})`,
      ]);
      const facts: [string, string][] = [
        ...sources,
        ["state", `${stateText(report.state)}, ${formatStateTotal(rows)}`],
        ["weights", formatBytes(report.weightBytes)],
      ];
      terminal.out(`${formatLayers(rows)}\n${formatFacts(facts)}${formatRemarks(remarks, warnings)}`);
    }
  } finally {
    progress.done();
  }
  return EXIT.ok;
}

function isFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() === true;
}

function inspectCompiled(
  path: string,
  model: Model,
  warnings: readonly string[],
  options: InspectCommandOptions,
  terminal: Terminal,
): void {
  const rows = compiledRows(model);
  const { before, after } = stateTotals(rows);
  const weightBytes = [...model.graph.initializers.values()].reduce((sum, tensor) => sum + tensor.byteLength, 0);
  const metadata = Object.fromEntries([...model.metadata].filter(([key]) => key.startsWith("mambac.")));
  if (options.json) {
    tell(terminal, {
      command: "inspect",
      version: VERSION,
      kind: "compiled",
      path,
      metadata,
      layers: rows.map(layerDocument),
      totals: { weightBytes, stateBytesBefore: before, stateBytesAfter: after },
      warnings,
    });
    return;
  }
  const facts: [string, string][] = [
    ["compiled by", `mambac ${metadata["mambac.version"] ?? "of unknown version"}`],
    ["source", `sha256 ${metadata["mambac.source_sha256"] ?? "unknown"}`],
    ["state", `${metadata["mambac.state"] ?? "unknown"}, ${formatStateTotal(rows)}`],
    ["weights", formatBytes(weightBytes)],
  ];
  terminal.out(`${formatLayers(rows)}\n${formatFacts(facts)}${formatRemarks([], warnings)}`);
}

function tell(terminal: Terminal, document: object): void {
  terminal.out(`${JSON.stringify(document, null, 2)}\n`);
}
