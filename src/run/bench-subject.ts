/** A model under measurement: opens one subject and times rounds of a prompt and the tokens after it. */

import { EXIT, MambacError } from "../support/errors.js";
import { Random } from "../support/random.js";
import type { BenchSettings, BenchSubject, RoundTimes, SubjectFacts, Timing } from "./bench-plan.js";
import { stateBytes } from "./bench-plan.js";
import { loadPackage } from "./stateful.js";
import type { LoadedPackage, StateSnapshot } from "./stateful-model.js";

export interface OpenSubject {
  readonly facts: SubjectFacts;
  /** Times one round. */
  round(): Promise<RoundTimes>;
  close(): Promise<void>;
}

/** A round lasts at least this long, so that timers and short disturbances do not decide it. */
const ROUND_MS = 60;
/** A graph that runs its whole prefix for every token gets no more time than this a round. */
const PREFIX_MS = 1500;

/**
 * Opens a subject and warms it up. Throws what `loadPackage` throws, and `bench/registration` when a library was
 * registered but operators of the model ran without it.
 */
export async function openSubject(subject: BenchSubject, settings: BenchSettings): Promise<OpenSubject> {
  switch (subject.kind) {
    case "package":
      return openPackage(subject, settings);
    case "pair":
      return openPair(subject, settings);
    default:
      return openForward(subject, settings);
  }
}

async function openPackage(
  subject: BenchSubject & { readonly kind: "package" },
  settings: BenchSettings,
): Promise<OpenSubject> {
  const { batch, threads } = settings;
  const timed = timerOf(settings);
  // As a server does that binds its outputs once; fresh pages for the logits of a long prompt would be timed otherwise.
  const options = { batch, threads, library: subject.library ?? "none", reuseLogits: true } as const;
  const model = await loadPackage(subject.path, options);
  const facts = factsOf(model, settings, {});
  if (subject.library !== null) requireKernels(facts, subject.library);
  if (!model.stateful) {
    await model.close();
    throw new MambacError("bench/stateless", `${subject.path} has no state: compile it first`, EXIT.unsupported);
  }
  const tokens = await randomTokens(model, settings);
  const sequence = async (): Promise<RoundTimes> => {
    model.reset();
    const prefill = await timed(batch * tokens.prompt.length, () => model.prefill(tokens.prompt));
    return { prefill, decode: await decode(model, tokens.next, timed) };
  };
  return opened(model, facts, await repeated(sequence));
}

async function openPair(
  subject: BenchSubject & { readonly kind: "pair" },
  settings: BenchSettings,
): Promise<OpenSubject> {
  const { batch, threads } = settings;
  const timed = timerOf(settings);
  const options = { backend: "node", batch, threads } as const;
  const model = await loadPackage(subject.decode, { ...options, dims: subject.dims });
  const notes: string[] = [];
  const first = subject.prefill === null ? null : await openPrefill(subject.prefill, options, notes);
  const tokens = await randomTokens(model, settings);
  const prompt = promptFor(first ?? model, tokens.prompt, notes);
  // Caches of attention make a step dearer with every token, so decoding starts after a prompt of its own.
  let start: StateSnapshot | null = null;
  if (model.signature.states.some((pair) => pair.growthAxis !== null)) {
    model.reset();
    for (const token of prompt) await model.step(token);
    start = model.snapshot();
  }
  const sequence = async (): Promise<RoundTimes> => {
    const prefill = first === null ? null : await timed(batch * prompt.length, () => first.prefill(prompt));
    if (start === null) model.reset();
    else model.restore(start);
    return { prefill, decode: await decode(model, tokens.next, timed) };
  };
  const close = async (): Promise<void> => {
    await first?.close();
  };
  return opened(model, { ...factsOf(model, settings, subject.dims), notes }, await repeated(sequence), close);
}

/** The prefill graph; null with a note where it cannot be run. */
async function openPrefill(
  path: string,
  options: { readonly backend: "node"; readonly batch: number; readonly threads: number },
  notes: string[],
): Promise<LoadedPackage | null> {
  try {
    return await loadPackage(path, options);
  } catch (cause) {
    if (!(cause instanceof MambacError)) throw cause;
    notes.push(`its prefill graph cannot be run: ${cause.message}`);
    return null;
  }
}

async function openForward(
  subject: BenchSubject & { readonly kind: "forward" },
  settings: BenchSettings,
): Promise<OpenSubject> {
  const { batch, threads, steps } = settings;
  const timed = timerOf(settings);
  const model = await loadPackage(subject.path, { backend: "node", batch, threads });
  const notes = ["it has no state: every token runs its whole prefix again"];
  const { prompt, next } = await randomTokens(model, settings);
  const fitting = promptFor(model, prompt, notes);
  const fixed = model.signature.tokens.length;
  const prefix = (more: number): readonly number[] =>
    typeof fixed === "number" ? fitting : [...fitting, ...next.slice(0, more)];
  await model.prefill(fitting);
  const once = await timed(1, () => model.prefill(fitting));
  const count = Math.min(steps, Math.max(1, Math.floor(PREFIX_MS / once.milliseconds)));
  if (count < steps) notes.push(`decoding was timed at ${count} lengths spread over those of ${steps} tokens`);
  const sequence = async (): Promise<RoundTimes> => {
    const prefill = await timed(batch * fitting.length, () => model.prefill(fitting));
    let milliseconds = 0;
    for (let i = 0; i < count; i++) {
      const tokens = prefix(Math.floor(((i + 1) * steps) / count));
      milliseconds += (await timed(1, () => model.prefill(tokens))).milliseconds;
    }
    return { prefill, decode: { tokens: batch * count, milliseconds } };
  };
  return opened(model, { ...factsOf(model, settings, {}), notes }, await repeated(sequence));
}

/** The prompt cut to what a graph of fixed length takes. Throws `bench/length` when the graph takes more. */
function promptFor(model: LoadedPackage, prompt: readonly number[], notes: string[]): readonly number[] {
  const fixed = model.signature.tokens.length;
  if (typeof fixed !== "number" || fixed === prompt.length || (fixed === 1 && model.stateful)) return prompt;
  notes.push(`it takes ${fixed} tokens a call and nothing else, so its prompt has that length`);
  return Array.from({ length: fixed }, (_, i) => prompt[i % prompt.length] ?? 0);
}

function factsOf(model: LoadedPackage, settings: BenchSettings, dims: Readonly<Record<string, number>>): SubjectFacts {
  const { kernels, functions } = model.executedOps();
  return {
    stateBytes: stateBytes(model.signature, dims, settings.prefill + settings.steps),
    backend: model.backend,
    kernels: [...kernels.keys()].sort(),
    functions: [...functions.keys()].sort(),
    inPlace: model.statesInPlace.size,
    states: model.signature.states.length,
    notes: [],
  };
}

/** Registration can fail without any error: then the functions run. */
function requireKernels(facts: SubjectFacts, library: string): void {
  if (facts.functions.length === 0) return;
  throw new MambacError(
    "bench/registration",
    `${library} was registered, yet ${facts.functions.join(", ")} ran as functions of the model: ` +
      "the library has no kernels of these names; build it again from the mambac that compiled the file",
    EXIT.unsupported,
  );
}

/** The same tokens for every subject. */
async function randomTokens(
  model: LoadedPackage,
  settings: BenchSettings,
): Promise<{ readonly prompt: readonly number[]; readonly next: readonly number[] }> {
  const fixed = model.signature.tokens.length;
  const probe = await model.prefill(Array.from({ length: typeof fixed === "number" ? fixed : 1 }, () => 0));
  const random = new Random(1).split("bench");
  const draw = (length: number): number[] => Array.from({ length }, () => random.integer(probe.vocabulary));
  return { prompt: draw(settings.prefill), next: draw(settings.steps) };
}

async function decode(model: LoadedPackage, tokens: readonly number[], timed: Timer): Promise<Timing> {
  return timed(model.batch * tokens.length, async () => {
    for (const token of tokens) await model.step(token);
  });
}

type Timer = (tokens: number, work: () => Promise<unknown>) => Promise<Timing>;

function timerOf({ clock }: BenchSettings): Timer {
  const now = (): number => {
    if (clock !== "cpu") return performance.now();
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  };
  return async (tokens, work) => {
    const start = now();
    await work();
    return { tokens, milliseconds: now() - start };
  };
}

/** Warms up with two sequences, and repeats short ones within a round. */
async function repeated(sequence: () => Promise<RoundTimes>): Promise<() => Promise<RoundTimes>> {
  await sequence();
  const start = performance.now();
  await sequence();
  const repeats = Math.max(1, Math.ceil(ROUND_MS / (performance.now() - start)));
  return async () => {
    const all: RoundTimes[] = [];
    for (let i = 0; i < repeats; i++) all.push(await sequence());
    const prefills = all.flatMap(({ prefill }) => prefill ?? []);
    return { prefill: prefills.length === 0 ? null : total(prefills), decode: total(all.map((one) => one.decode)) };
  };
}

function total(timings: readonly Timing[]): Timing {
  return {
    tokens: timings.reduce((sum, one) => sum + one.tokens, 0),
    milliseconds: timings.reduce((sum, one) => sum + one.milliseconds, 0),
  };
}

function opened(
  model: LoadedPackage,
  facts: SubjectFacts,
  round: () => Promise<RoundTimes>,
  also: () => Promise<void> = async () => undefined,
): OpenSubject {
  return {
    facts,
    round,
    async close() {
      await model.close();
      await also();
    },
  };
}
