/**
 * Checks every kernel of this process and prints what it found as JSON.
 * Usage: parity-worker LIBRARY calls|long|replay, with MAMBAC_ISA in the environment.
 */

import fc from "fast-check";
import { f32Tensor, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { isPacked, type OpSpec, opNames, parseOpName, type ScanSpec, stateType } from "../../src/ops/names.js";
import { openNativeSession } from "../../src/run/native-session.js";
import { convCase, joinedParts } from "../ops/conv-case.js";
import { relativeError, type ScanData, type ScanSizes } from "../ops/scan-case.js";
import {
  aliasingFault,
  CHANGES,
  convSizes,
  expectedOf,
  memoryOf,
  noDifference,
  note,
  type Outcome,
  openBoth,
  outcomeOf,
  randomData,
  runAliased,
  scanFeeds,
  scanModel,
  sizesFor,
  tensorOf,
  tokenFeeds,
  type Worst,
} from "./parity-cases.js";
import { checkReplay, type ReplayReport } from "./parity-replay.js";

/** What became of one operator. */
export interface OpReport {
  readonly op: string;
  /** Against the float64 reference. */
  readonly reference: Worst;
  /** Against the function of the same name, in ONNX Runtime. */
  readonly function: Worst;
  readonly calls: number;
  /** The first thing that is simply wrong, with the case that shows it; null for none. */
  readonly fault: string | null;
}

/** What became of one long run. */
export interface LongReport {
  readonly op: string;
  readonly tokens: number;
  /** Each token against the reference started from the kernel's own state. */
  readonly each: Worst;
  /** Root mean square error of y that the format costs, by the kernel and by the reference, running free. */
  readonly kernelCost: number;
  readonly referenceCost: number;
  /** Largest relative error of y of the free run; of meaning where nothing is rounded. */
  readonly drift: number;
}

/** Shapes an operator is tried on, three inputs each. */
const RUNS = 5;

const [, , library = "", job = ""] = process.argv;

async function checkScan(op: string, spec: ScanSpec): Promise<OpReport> {
  const reference = noDifference();
  const body = noDifference();
  let calls = 0;
  const property = fc.asyncProperty(sizesFor(spec), fc.nat(), async (sizes, seed) => {
    using sessions = await openBoth(scanModel(spec, sizes), library);
    const base = randomData(spec, sizes, seed);
    // Every shape with random values, and with two of the unusual inputs in turn.
    for (const at of [0, 1 + (calls % (CHANGES.length - 1)), 1 + ((calls + 3) % (CHANGES.length - 1))]) {
      const [what, change] = CHANGES[at] ?? ["", () => ({})];
      const data = { ...base, ...change(base, sizes, spec) };
      const feeds = scanFeeds(spec, sizes, data);
      const outputs = sessions.kernel.run(feeds);
      const fault = aliasingFault(runAliased(sessions.kernel, feeds, outputs), outputs);
      if (fault !== null) throw new Error(`${what}: ${fault}`);
      const actual = outcomeOf(spec, outputs);
      if (spec.requantize === "token" && sizes.length > 1) {
        // Rounding at every token carries a tie's other side on: only calls of one token can be compared.
        const stepped = stepThrough(sessions.kernel, spec, sizes, data, reference);
        if (!sameBits(actual, stepped)) throw new Error(`${what}: one call differs from its tokens one by one`);
      } else {
        note(reference, spec, sizes, actual, expectedOf(spec, sizes, data));
        note(body, spec, sizes, actual, outcomeOf(spec, sessions.body.run(feeds)));
      }
      const limit = !(reference.y <= 1e-5) || !(body.y <= 1e-5) || reference.largest > 1 || body.largest > 1;
      if (limit) throw new Error(`${what}: out of bounds: ${JSON.stringify({ reference, body })}`);
      calls += 1;
    }
  });
  return { op, reference, function: body, fault: await faultOf(property), calls };
}

type Session = Awaited<ReturnType<typeof openNativeSession>>;

/** Runs a case token by token; every token is held against the reference from the same state. */
function stepThrough(session: Session, spec: ScanSpec, sizes: ScanSizes, data: ScanData, worst: Worst): Outcome {
  const rows: ArrayLike<number>[] = [];
  const wanted: ArrayLike<number>[] = [];
  let past: Tensor | null = null;
  for (let token = 0; token < sizes.length; token++) {
    const one = tokenFeeds(sizes, data, token);
    const current: ScanData = past === null ? one.data : { ...one.data, past: pastOf(spec, past) };
    const feeds = scanFeeds(spec, one.sizes, current);
    const outputs = session.run(feeds);
    const [actual, expected] = [outcomeOf(spec, outputs), expectedOf(spec, one.sizes, current)];
    note(worst, spec, one.sizes, { ...actual, y: [] }, { ...expected, y: [] });
    rows.push(actual.y);
    wanted.push(expected.y);
    past = tensorOf(outputs, "present");
  }
  if (past === null) throw new Error("a case without tokens");
  const y = joined(rows, sizes);
  // Over all tokens, as for one call: sums of a single token may cancel to almost nothing.
  worst.y = Math.max(worst.y, relativeError(y, joined(wanted, sizes)));
  return { y, state: isPacked(spec.format) ? past.bytes() : toNumbers(past) };
}

/** y of single tokens [B, 1, rows] as that of one call [B, L, rows]. */
function joined(tokens: readonly ArrayLike<number>[], sizes: ScanSizes): Float64Array {
  const width = (tokens[0]?.length ?? 0) / sizes.batch;
  const y = new Float64Array(width * sizes.batch * sizes.length);
  tokens.forEach((row, token) => {
    for (let b = 0; b < sizes.batch; b++) {
      y.set(Array.from(row).slice(b * width, (b + 1) * width), (b * sizes.length + token) * width);
    }
  });
  return y;
}

function pastOf(spec: ScanSpec, tensor: Tensor): Float32Array | Uint8Array {
  return isPacked(spec.format) ? Uint8Array.from(tensor.bytes()) : Float32Array.from(toNumbers(tensor));
}

function sameBits(a: Outcome, b: Outcome): boolean {
  const same = (x: ArrayLike<number>, y: ArrayLike<number>): boolean =>
    x.length === y.length && Array.from(x).every((value, i) => Object.is(value, y[i]));
  return same(a.y, b.y) && same(a.state, b.state);
}

async function checkConv(op: string, { activation, layout }: OpSpec & { kind: "conv" }): Promise<OpReport> {
  const reference = noDifference();
  const body = noDifference();
  let calls = 0;
  const property = fc.asyncProperty(convSizes, fc.nat(), async (sizes, seed) => {
    const drawn = convCase(layout, activation, sizes, seed);
    const { model, feeds, expected } = drawn;
    using sessions = await openBoth(model, library);
    const outputs = sessions.kernel.run(feeds);
    const fault = aliasingFault(runAliased(sessions.kernel, feeds, outputs), outputs);
    if (fault !== null) throw new Error(fault);
    const y = joinedParts(outputs, drawn, layout, sizes);
    const state = toNumbers(tensorOf(outputs, "present"));
    const other = sessions.body.run(feeds);
    reference.y = Math.max(reference.y, relativeError(y, expected.y));
    reference.state = Math.max(reference.state, relativeError(state, expected.state));
    body.y = Math.max(body.y, relativeError(y, joinedParts(other, drawn, layout, sizes)));
    body.state = Math.max(body.state, relativeError(state, toNumbers(tensorOf(other, "present"))));
    if (!(reference.y <= 1e-5) || !(body.y <= 1e-5)) throw new Error(`out of bounds: ${reference.y}, ${body.y}`);
    calls += 1;
  });
  return { op, reference, function: body, fault: await faultOf(property), calls };
}

/** The counterexample a property finds, as text. */
async function faultOf<T>(property: fc.IAsyncProperty<T>): Promise<string | null> {
  const details = await fc.check(property, { seed: 61, numRuns: RUNS, endOnFailure: true });
  if (!details.failed) return null;
  const error = details.errorInstance instanceof Error ? details.errorInstance.message : String(details.errorInstance);
  return `${error} with ${fc.stringify(details.counterexample)}`;
}

const TOKENS = 2000;

/** 2000 tokens, one call each, in one buffer: as a server decodes. */
async function checkLong(op: string, spec: ScanSpec): Promise<LongReport> {
  const sizes: ScanSizes = {
    batch: 1,
    length: 1,
    heads: 1,
    headDim: 12,
    dState: 20,
    groups: 1,
    chunkSize: 64,
    dtMin: Number.NEGATIVE_INFINITY,
    dtMax: Number.POSITIVE_INFINITY,
  };
  const full = { ...sizes, length: TOKENS };
  const zero = (data: ScanData): ScanData => ({
    ...data,
    past: data.past instanceof Uint8Array ? new Uint8Array(data.past.length) : new Float32Array(data.past.length),
  });
  const data = zero(randomData(spec, full, 71));
  const session = await openNativeSession(scanModel(spec, sizes), { library });
  const first = scanFeeds(spec, sizes, tokenFeeds(full, data, 0).data);
  const memory = new Map([...first].map(([name, tensor]) => [name, memoryOf(tensor)]));
  const state = memory.get("past");
  const width = sizes.heads * sizes.headDim;
  const y = memoryOf(
    f32Tensor([1, 1, ...(spec.family === "mamba2" ? [sizes.heads, sizes.headDim] : [width])], new Float32Array(width)),
  );
  if (state === undefined) throw new Error("a scan without state");
  const each = noDifference();
  const actual = new Float64Array(TOKENS * width);
  {
    using binding = session.bind();
    for (const [name, value] of memory) binding.input(name, value);
    binding.output("y", y);
    binding.output("present", state);
    const type = stateType(spec, sizes);
    const stateNow = (): Tensor => tensorFromBytes(type.dtype, [1, ...type.shape], state.bytes.slice());
    for (let token = 0; token < TOKENS; token++) {
      const one = tokenFeeds(full, data, token).data;
      for (const name of ["x", "dt", "B", "C"] as const) {
        memory.get(name)?.bytes.set(new Uint8Array(one[name].buffer, one[name].byteOffset, one[name].byteLength));
      }
      const before = pastOf(spec, stateNow());
      binding.run();
      const values = new Float32Array(y.bytes.buffer, y.bytes.byteOffset, y.bytes.byteLength / 4);
      actual.set(values, token * width);
      const after = stateNow();
      const outcome = { y: values, state: isPacked(spec.format) ? after.bytes() : toNumbers(after) };
      note(each, spec, sizes, outcome, expectedOf(spec, sizes, { ...one, past: before }));
    }
  }
  session.close();
  const rounded = expectedOf({ ...spec, requantize: "token" }, full, data).y;
  const exact = expectedOf({ ...spec, format: "f32" }, full, zero(randomData({ ...spec, format: "f32" }, full, 71))).y;
  return {
    op,
    tokens: TOKENS,
    each,
    kernelCost: rms(actual, exact),
    referenceCost: rms(rounded, exact),
    drift: relativeError(actual, rounded),
  };
}

function rms(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < b.length; i++) sum += ((a[i] ?? Number.NaN) - (b[i] ?? 0)) ** 2;
  return Math.sqrt(sum / b.length);
}

const reports: (OpReport | LongReport | ReplayReport)[] = [];
for (const op of opNames()) {
  const spec = parseOpName(op);
  if (spec?.kind === "conv") {
    if (job === "calls") reports.push(await checkConv(op, spec));
  } else if (spec?.kind === "scan" && spec.requantize === "replay") {
    if (job === "replay") reports.push(await checkReplay(op, spec, library));
  } else if (spec?.kind === "scan") {
    if (job === "calls") reports.push(await checkScan(op, spec));
    else if (job === "long" && spec.requantize === "call") reports.push(await checkLong(op, spec));
  }
}
process.stdout.write(`${JSON.stringify(reports)}\n`);
