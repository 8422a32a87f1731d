/**
 * `mambac verify` of a model without token ids and states, such as one of pictures: every output of OUT against that of
 * each source, on random inputs, for one item and for several.
 */

import { VERSION } from "../compile.js";
import { readModel } from "../onnx/read.js";
import { declaredBatch } from "../rewrite/axes.js";
import { compareLogits, type Difference, worstOf } from "../run/parity.js";
import { asScores, openPlainModel, type PlainModel, randomInputs } from "../run/plain-model.js";
import { roundingOf } from "../run/rounding.js";
import { modelFile } from "../run/stateful.js";
import { sourceFiles } from "../sources.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import type { Terminal } from "./terminal.js";
import { formatError, formatTable } from "./text-table.js";
import type { VerifyCommandOptions } from "./verify.js";

/** Limits as for logits: on the largest difference, and where something is rounded on the root mean square. */
export interface PlainLimits {
  readonly exact: number;
  readonly lossy: number;
}

interface Check {
  readonly source: string;
  readonly output: string;
  readonly batches: readonly number[];
  readonly difference: Difference;
  readonly passed: boolean;
}

const BATCHES: readonly number[] = [1, 3];

/** Runs the command: exit code 3 when an output differs. Throws `plain/...` for what cannot be compared. */
export async function verifyPlain(
  options: VerifyCommandOptions,
  limits: PlainLimits,
  terminal: Terminal,
): Promise<ExitCode> {
  const path = modelFile(options.output);
  const { model } = readModel(path);
  const rounding = roundingOf(model);
  const subject = await openPlainModel(path, options);
  const checks: Check[] = [];
  try {
    for (const source of sourceFiles(options.against)) {
      const reference = await openPlainModel(source.path, { library: "none", threads: options.threads });
      try {
        checks.push(
          ...(await compared(model.graph, source.path, subject, reference, options.seed, (difference) =>
            rounding.lossy ? difference.rms <= limits.lossy : difference.relative <= limits.exact,
          )),
        );
      } finally {
        await reference.close();
      }
    }
  } finally {
    await subject.close();
  }
  const passed = checks.every((check) => check.passed);
  const limit = rounding.lossy ? `rms ${limits.lossy}` : `max ${limits.exact}`;
  if (options.json) {
    const { output, against, seed } = options;
    const document = { command: "verify", version: VERSION, output, against, seed, library: subject.library };
    terminal.out(`${JSON.stringify({ ...document, rounding, checks, passed }, null, 2)}\n`);
  } else {
    const heading = ["", "against", "output", "batches", "max error", "rms error", "same best class", "limit"];
    const rows = checks.map(({ source, output, batches, difference, passed: fine }) => [
      fine ? "ok" : "FAIL",
      source,
      output,
      batches.join(","),
      formatError(difference.relative),
      formatError(difference.rms),
      `${(100 * difference.top1).toFixed(1)} %`,
      limit,
    ]);
    const kernels = subject.library === null ? "portable functions" : `kernels of ${subject.library}`;
    terminal.out(
      `${formatTable([heading, ...rows])}\n${options.output} on random inputs, seed ${options.seed}, ${kernels}: ${passed ? "passed" : "FAILED"}\n`,
    );
  }
  return passed ? EXIT.ok : EXIT.belowGate;
}

async function compared(
  graph: Parameters<typeof randomInputs>[0],
  source: string,
  subject: PlainModel,
  reference: PlainModel,
  seed: number,
  judge: (difference: Difference) => boolean,
): Promise<Check[]> {
  const fixed = declaredBatch(graph);
  const batches = fixed === null ? BATCHES : [fixed];
  const found = new Map<string, Difference[]>();
  for (const batch of batches) {
    const feeds = randomInputs(graph, batch, seed);
    const [actual, expected] = [await subject.run(feeds), await reference.run(feeds)];
    for (const [name, wanted] of expected) {
      const given = actual.get(name);
      if (given === undefined) {
        throw new MambacError(
          "plain/output",
          `${source} gives ${name}, which the compiled file does not`,
          EXIT.unsupported,
        );
      }
      found.set(name, [...(found.get(name) ?? []), compareLogits(asScores(given), asScores(wanted))]);
    }
  }
  return [...found].flatMap(([output, differences]): Check[] => {
    const difference = worstOf(differences);
    return difference === null ? [] : [{ source, output, batches, difference, passed: judge(difference) }];
  });
}
