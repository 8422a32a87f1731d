/**
 * Does a graph with all its states give the same results however its tokens are spread over calls? Looked at where something
 * in the graph may look past its states, and then run.
 */

import { executableModel } from "./executable.js";
import type { Model, Node } from "./ir/graph.js";
import { encodeModel } from "./onnx/write.js";
import { MEASURED_BYTES, totalBytes } from "./pair.js";
import { declaredBatch, declaredLength, hasTokenIds } from "./rewrite/axes.js";
import type { Step } from "./rewrite/pipeline.js";
import { semanticOps } from "./rewrite/semantic.js";
import { attentionWithoutCache, mayMixTokens, mixesTokens } from "./rewrite/token-mixing.js";
import { proofTrials } from "./rewrite/trials.js";
import { splitByKernel } from "./run/executed-ops.js";
import { compareLogits, feedInParts } from "./run/parity.js";
import { nodeRunner } from "./run/runner.js";
import { openSession } from "./run/session.js";
import { readSignature } from "./run/signature.js";
import { StatefulModel } from "./run/stateful-model.js";
import { EXIT, MambacError } from "./support/errors.js";
import { Random } from "./support/random.js";

/** Tokens that are run, and where the second run cuts them: one token alone, too. */
const LENGTH = 9;
const CUTS = [4, 5];

/** Largest difference of a logit, over the largest logit, between one call and several. */
const AGREEMENT = 1e-4;

export interface CarryOptions {
  /** Makes the model executable. */
  readonly executable: () => Step[];
  /** Token ids are below this. */
  readonly vocabulary: number;
  readonly threads: number;
}

/**
 * Refuses (`carry/forgets`, exit code 4) a model whose results depend on where calls end, though it has all its states: of its
 * attention without a cache, or of whatever else is not carried. Where it cannot be run, attention without a cache and
 * convolutions that were not recognised are.
 * Graphs that carry nothing, and those of one token, are left alone.
 */
export async function requireCarried(model: Model, options: CarryOptions): Promise<void> {
  const scans = semanticOps(model.graph.nodes).filter((op) => op.kind === "scan");
  const carries = scans.length > 0 && scans.every(({ stateless }) => stateless === undefined);
  const length = declaredLength(model.graph);
  if (!carries || length === 1) return;
  const { tracer } = proofTrials(model);
  const suspects = mayMixTokens(tracer);
  // What only cuts and joins is named where there is nothing else.
  const suspect =
    suspects.find(mixesTokens) ?? suspects.find(({ op }) => !/^(Slice|Concat|Pad|Gather)$/.test(op)) ?? suspects[0];
  if (suspect === undefined) return;
  const attention = attentionWithoutCache(tracer);
  const apart =
    hasTokenIds(model.graph) && length === null && totalBytes(model) <= MEASURED_BYTES
      ? await difference(model, options)
      : null;
  if (apart === null ? attention === null && !mixesTokens(suspect) : apart <= AGREEMENT) return;
  throw forgets(attention, suspect, apart);
}

function forgets(attention: Node | null, suspect: Node, apart: number | null): MambacError {
  const [cause, advice] = causeOf(attention, suspect);
  const seen =
    apart === null
      ? ""
      : `; cut into calls, the logits of ${LENGTH} tokens move by ${apart.toExponential(1)} of the largest`;
  return new MambacError(
    "carry/forgets",
    `the graph would not give the same results when its tokens come in several calls: ${cause}${seen}. ${advice}`,
    EXIT.unsupported,
  );
}

/** What is not carried, and what helps. */
function causeOf(attention: Node | null, suspect: Node): [cause: string, advice: string] {
  const label = (node: Node): string => `${node.op} ${node.name || (node.outputs[0] ?? "")}`;
  const caches =
    "Export it with caches as outputs (use_cache=True) and positions as inputs, as a prefill graph or a pair";
  if (attention !== null)
    return [
      `its attention (${label(attention)}) has no cache that was recognised, so it forgets the tokens of earlier calls`,
      caches,
    ];
  if (mixesTokens(suspect)) {
    const quantized = suspect.op === "ConvInteger" || suspect.op === "QLinearConv";
    return [
      `its ${label(suspect)} was not recognised as a causal convolution, so it forgets the tokens of earlier calls`,
      quantized ? "Compile the float model that it was made of, with a recipe" : caches,
    ];
  }
  return [
    `something besides scans and convolutions looks at other tokens or counts them, and is not carried from call to call (the first that may: ${label(suspect)})`,
    caches,
  ];
}

/** How far one call is from several; null where the model cannot be run, or gives no numbers to compare. */
async function difference(model: Model, options: CarryOptions): Promise<number | null> {
  try {
    const ready = await executableModel(model, options.executable(), options.threads);
    const batch = declaredBatch(model.graph) ?? 1;
    const random = new Random(0).split("carry");
    const rows = Array.from({ length: batch }, () =>
      Array.from({ length: LENGTH }, () => random.integer(options.vocabulary)),
    );
    const session = await openSession(encodeModel(ready), { threads: options.threads });
    await using runs = new StatefulModel({
      modelPath: "",
      model: ready,
      signature: readSignature(ready),
      batch,
      dims: new Map(),
      reuseLogits: false,
      runner: nodeRunner(session),
      library: null,
      inPlace: new Set(),
      executed: splitByKernel(new Map(), new Set()),
    });
    const whole = await feedInParts(runs, rows, []);
    if (!whole.data.every(Number.isFinite)) return null;
    return compareLogits(await feedInParts(runs, rows, CUTS), whole).relative;
  } catch (cause) {
    if (cause instanceof MambacError) return null;
    throw cause;
  }
}
