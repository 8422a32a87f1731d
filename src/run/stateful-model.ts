/** A language model that carries its state: prefill a prompt, step token by token, snapshot and restore. */

import type { Model } from "../ir/graph.js";
import { type Tensor, tensorFromBytes } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { invariant, MambacError } from "../support/errors.js";
import type { ExecutedOps } from "./executed-ops.js";
import { concatenate, type Logits, toFloats } from "./logits.js";
import { allocate, type Memory } from "./native-session.js";
import { type CallPlan, integerMemory, type Runner } from "./runner.js";
import type { Auxiliary, Signature } from "./signature.js";
import { type Selection, StateMemory } from "./state-memory.js";

/** Token ids of one sequence. */
export type Tokens = readonly number[] | Uint8Array;

/** State at some moment, as plain data. */
export interface StateSnapshot {
  /** Tokens seen by each slot. */
  readonly positions: readonly number[];
  readonly states: ReadonlyMap<string, Tensor>;
}

/** A model ready to run, with the state of `batch` independent sequences of its own. */
export interface LoadedPackage {
  readonly modelPath: string;
  readonly model: Model;
  readonly signature: Signature;
  readonly backend: "c-api" | "node";
  /** Path of the op library that is registered, or null. */
  readonly library: string | null;
  readonly batch: number;
  /** Tokens seen by each slot. */
  readonly positions: readonly number[];
  /** False for a plain forward graph: `prefill` works and remembers nothing, `step` throws. */
  readonly stateful: boolean;
  /** State inputs that share their buffer with their output. */
  readonly statesInPlace: ReadonlySet<string>;
  /**
   * Feeds a sequence to every slot (all of one length; a single sequence goes to all), or to one slot only. Gives the
   * logits the graph gives: usually of every position.
   */
  prefill(tokens: Tokens | readonly Tokens[], slot?: number): Promise<Logits>;
  /** Feeds one token to every slot. The logits are valid until the next call. */
  step(token: number | Tokens): Promise<Logits>;
  /** Back to zero state, for all slots or one. */
  reset(slot?: number): void;
  snapshot(slot?: number): StateSnapshot;
  /** Restores a snapshot: of the whole batch, or one taken of a single slot into any slot. */
  restore(snapshot: StateSnapshot, slot?: number): void;
  /** What really runs: kernels of the library, or functions inlined from the model. */
  executedOps(): ExecutedOps;
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface StatefulParts {
  readonly modelPath: string;
  readonly model: Model;
  readonly signature: Signature;
  readonly runner: Runner;
  readonly library: string | null;
  readonly batch: number;
  /** Whether logits of a prefill take the place of those before. */
  readonly reuseLogits: boolean;
  /** Lengths of symbolic state axes. */
  readonly dims: ReadonlyMap<string, number>;
  readonly inPlace: ReadonlySet<string>;
  readonly executed: ExecutedOps;
}

export class StatefulModel implements LoadedPackage {
  readonly modelPath: string;
  readonly model: Model;
  readonly signature: Signature;
  readonly library: string | null;
  readonly batch: number;
  readonly statesInPlace: ReadonlySet<string>;
  readonly #runner: Runner;
  readonly #executed: ExecutedOps;
  readonly #states: readonly StateMemory[];
  /** State whose length follows the tokens: all slots then share one position. */
  readonly #growing: boolean;
  readonly #positions: number[];
  readonly #steps: (StepPlan | null)[] = [null, null];
  /** Where prefill writes its logits again and again; null where each call has memory of its own. */
  #logitsBytes: Uint8Array | null;
  #parity = 0;
  #busy = false;

  constructor(parts: StatefulParts) {
    this.modelPath = parts.modelPath;
    this.model = parts.model;
    this.signature = parts.signature;
    this.library = parts.library;
    this.batch = parts.batch;
    this.#runner = parts.runner;
    this.#executed = parts.executed;
    this.#logitsBytes = parts.reuseLogits ? allocate(0) : null;
    const { tokens, states, auxiliaries } = parts.signature;
    if (!Number.isInteger(this.batch) || this.batch < 1) {
      throw new MambacError("run/batch", `batch must be a positive integer, not ${this.batch}`);
    }
    if (typeof tokens.batch === "number" && tokens.batch !== this.batch) {
      throw new MambacError("run/batch", `the graph is fixed to batch ${tokens.batch}, not ${this.batch}`);
    }
    this.#states = states.map((pair) => new StateMemory(pair, this.batch, parts.dims, parts.inPlace.has(pair.input)));
    this.statesInPlace = new Set(this.#states.filter((s) => s.inPlace).map((s) => s.pair.input));
    this.#growing = states.some((s) => s.growthAxis !== null) || auxiliaries.some((a) => a.name === "attention_mask");
    this.#positions = Array.from({ length: this.batch }, () => 0);
  }

  get backend(): "c-api" | "node" {
    return this.#runner.backend;
  }

  get stateful(): boolean {
    return this.#states.length > 0;
  }

  get positions(): readonly number[] {
    return this.#positions;
  }

  async prefill(tokens: Tokens | readonly Tokens[], slot?: number): Promise<Logits> {
    this.#requireSlot(slot, "prefill");
    const selection: Selection = slot === undefined || this.batch === 1 ? "all" : slot;
    const rows = this.#rows(tokens, selection === "all" ? this.batch : 1);
    const length = rows[0]?.length ?? 0;
    if (length === 0) throw new MambacError("run/tokens", "prefill needs at least one token");
    const fixed = this.signature.tokens.length;
    if (typeof fixed !== "number" || fixed === length) {
      return this.#exclusive(() => this.#call(rows, selection, true));
    }
    if (fixed !== 1 || !this.stateful) {
      throw new MambacError("run/length", `the graph takes exactly ${fixed} tokens a call, not ${length}`);
    }
    return this.#exclusive(async () => {
      const parts: Logits[] = [];
      for (let t = 0; t < length; t++) {
        parts.push(
          await this.#call(
            rows.map((row) => [row[t] ?? 0]),
            selection,
          ),
        );
      }
      return concatenate(parts);
    });
  }

  async step(token: number | Tokens): Promise<Logits> {
    if (!this.stateful) {
      throw new MambacError(
        "run/stateless",
        `${this.modelPath} is a plain forward graph without state; compile it to generate token by token`,
      );
    }
    const ids = typeof token === "number" ? Array.from({ length: this.batch }, () => token) : token;
    if (ids.length !== this.batch) {
      throw new MambacError("run/tokens", `step needs one token for each of ${this.batch} slots, not ${ids.length}`);
    }
    return this.#exclusive(() =>
      this.#growing
        ? this.#call(
            Array.from(ids, (id) => [id]),
            "all",
          )
        : this.#step(ids),
    );
  }

  reset(slot?: number): void {
    this.#requireSlot(slot, "reset");
    for (const state of this.#states) state.clear(slot ?? "all");
    if (slot === undefined) this.#positions.fill(0);
    else this.#positions[slot] = 0;
  }

  snapshot(slot?: number): StateSnapshot {
    this.#requireSlot(slot, "snapshot");
    const past = this.#past();
    const states = this.#states.map(({ pair }, i): [string, Tensor] => {
      const memory = this.#states[i]?.input(past, slot ?? "all");
      invariant(memory, "every state has memory");
      return [pair.input, tensorFromBytes(memory.dtype, memory.shape, memory.bytes.slice())];
    });
    const positions = slot === undefined ? [...this.#positions] : [this.#positions[slot] ?? 0];
    return { positions, states: new Map(states) };
  }

  restore(snapshot: StateSnapshot, slot?: number): void {
    this.#requireSlot(slot, "restore");
    const slots = slot === undefined ? this.batch : 1;
    if (snapshot.positions.length !== slots) {
      throw new MambacError("run/snapshot", `the snapshot holds ${snapshot.positions.length} slots, not ${slots}`);
    }
    const past = snapshot.positions[0] ?? 0;
    const tensors = this.#states.map((state) => {
      const tensor = snapshot.states.get(state.pair.input);
      const shape = state.shape(past);
      const expected = slot === undefined ? shape : [1, ...shape.slice(1)];
      if (tensor === undefined || tensor.dtype !== state.pair.dtype || tensor.shape.join() !== expected.join()) {
        throw new MambacError(
          "run/snapshot",
          `the snapshot does not fit this model: state ${state.pair.input} differs`,
        );
      }
      return tensor;
    });
    this.#states.forEach((state, i) => {
      const tensor = tensors[i];
      if (tensor !== undefined) state.write(past, slot ?? "all", tensor.bytes());
    });
    snapshot.positions.forEach((position, i) => {
      this.#positions[slot ?? i] = position;
    });
  }

  executedOps(): ExecutedOps {
    return this.#executed;
  }

  close(): Promise<void> {
    return this.#runner.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Growing state: what a call finds. All slots are then at one position. */
  #past(): number {
    return this.#positions[0] ?? 0;
  }

  #requireSlot(slot: number | undefined, action: string): void {
    if (slot === undefined) return;
    if (!Number.isInteger(slot) || slot < 0 || slot >= this.batch) {
      throw new MambacError("run/slot", `there is no slot ${slot}: the batch has ${this.batch}`);
    }
    if (this.#growing && this.batch > 1) {
      throw new MambacError("run/slot", `cannot ${action} one slot: attention layers keep all slots at one position`);
    }
    if (typeof this.signature.tokens.batch === "number" && this.batch > 1 && action === "prefill") {
      throw new MambacError("run/slot", `cannot prefill one slot: the graph is fixed to batch ${this.batch}`);
    }
  }

  #rows(tokens: Tokens | readonly Tokens[], count: number): Tokens[] {
    const nested = !(tokens instanceof Uint8Array) && tokens.some((entry) => typeof entry !== "number");
    const rows = nested ? [...(tokens as readonly Tokens[])] : Array.from({ length: count }, () => tokens as Tokens);
    if (rows.length !== count || rows.some((row) => row.length !== rows[0]?.length)) {
      throw new MambacError(
        "run/tokens",
        `prefill needs ${count} sequences of one length; fill slots one by one otherwise`,
      );
    }
    return rows;
  }

  /** One owner at a time: two calls at once would mix their states. */
  async #exclusive<T>(action: () => Promise<T>): Promise<T> {
    if (this.#busy) throw new MambacError("run/busy", "the previous call has not ended; await it first");
    this.#busy = true;
    try {
      return await action();
    } finally {
      this.#busy = false;
    }
  }

  /** A call with bindings of its own. */
  async #call(rows: readonly Tokens[], selection: Selection, whole: boolean = false): Promise<Logits> {
    const length = rows[0]?.length ?? 0;
    const { plan, logits } = this.#plan(rows, length, selection, false, whole);
    const results = await this.#runner.run(plan);
    this.#advance(length, selection);
    return this.#logits(results, logits, rows.length, length);
  }

  /** A step with a binding made once: only tokens and positions are written. */
  async #step(ids: Tokens): Promise<Logits> {
    let step = this.#steps[this.#parity];
    if (step === null || step === undefined) {
      step = this.#stepPlan(ids);
      this.#steps[this.#parity] = step;
    } else {
      step.write(ids, this.#positions);
    }
    const results = await this.#runner.run(step.plan);
    this.#advance(1, "all");
    return this.#logits(results, step.logits, this.batch, 1);
  }

  #stepPlan(ids: Tokens): StepPlan {
    const { plan, logits } = this.#plan(
      Array.from(ids, (id) => [id]),
      1,
      "all",
      true,
    );
    const tokens = plan.inputs.get(this.signature.tokens.name);
    const positions = this.signature.auxiliaries
      .filter((a) => a.name === "position_ids" || a.name === "cache_position")
      .flatMap((a) => plan.inputs.get(a.name) ?? []);
    invariant(tokens, "every plan feeds tokens");
    const writeTokens = integerWriter(tokens);
    const writePositions = positions.map(integerWriter);
    return {
      plan,
      logits,
      write(next, at) {
        writeTokens(next);
        for (const write of writePositions) write(at);
      },
    };
  }

  #plan(
    rows: readonly Tokens[],
    length: number,
    selection: Selection,
    reusable: boolean,
    whole: boolean = false,
  ): { readonly plan: CallPlan; readonly logits: Memory | null } {
    const { tokens, logits, auxiliaries } = this.signature;
    const past = this.#past();
    const inputs = new Map<string, Memory>();
    const flat = rows.flatMap((row) => Array.from(row));
    inputs.set(tokens.name, integerMemory(tokens.dtype, [rows.length, length], flat));
    const starts = selection === "all" ? this.#positions : [this.#positions[selection] ?? 0];
    for (const input of auxiliaries) inputs.set(input.name, auxiliaryMemory(input, starts, length));
    const outputs = new Map<string, Memory | null>();
    const shape = this.#logitsShape(rows.length, length);
    const memory: Memory | null =
      shape === null ? null : { dtype: "f32", shape, bytes: this.#logitsMemory(4 * elementCount(shape), whole) };
    outputs.set(logits.name, memory);
    for (const state of this.#states) {
      inputs.set(state.pair.input, state.input(past, selection));
      outputs.set(state.pair.output, state.output(past + length, selection));
    }
    return { plan: { inputs, outputs, reusable }, logits: memory };
  }

  /** Fresh memory, or that of the last whole prompt of this size where the model was loaded so. */
  #logitsMemory(byteLength: number, whole: boolean): Uint8Array {
    if (this.#logitsBytes === null || !whole) return allocate(byteLength);
    if (this.#logitsBytes.byteLength !== byteLength) this.#logitsBytes = allocate(byteLength);
    return this.#logitsBytes;
  }

  /** The logits' shape where the graph tells it before the run. */
  #logitsShape(batch: number, length: number): number[] | null {
    const { dtype, shape } = this.signature.logits;
    const [, middle, last] = shape;
    if (dtype !== "f32" || shape.length !== 3 || typeof last !== "number") return null;
    if (middle === length || middle === this.signature.tokens.length) return [batch, length, last];
    return null;
  }

  #logits(results: ReadonlyMap<string, Tensor>, memory: Memory | null, batch: number, length: number): Logits {
    if (memory !== null) {
      const { bytes, shape } = memory;
      return {
        batch,
        length,
        vocabulary: shape.at(-1) ?? 0,
        data: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4),
      };
    }
    const tensor = results.get(this.signature.logits.name);
    invariant(tensor, "the run gave no logits");
    const vocabulary = tensor.shape.at(-1) ?? 0;
    // Graphs that answer for the last position only give [batch, vocabulary] or [batch, 1, vocabulary].
    return { batch, length: elementCount(tensor.shape) / (batch * vocabulary), vocabulary, data: toFloats(tensor) };
  }

  #advance(length: number, selection: Selection): void {
    if (!this.stateful) return;
    for (const state of this.#states) {
      if (selection === "all") state.flip();
      else state.keep(selection);
    }
    if (selection !== "all") {
      this.#positions[selection] = (this.#positions[selection] ?? 0) + length;
      return;
    }
    for (let i = 0; i < this.batch; i++) this.#positions[i] = (this.#positions[i] ?? 0) + length;
    // Buffers have changed places, so the other of the two step plans fits now.
    if (this.#states.some((state) => !state.inPlace)) this.#parity ^= 1;
  }
}

interface StepPlan {
  readonly plan: CallPlan;
  readonly logits: Memory | null;
  write(ids: Tokens, positions: readonly number[]): void;
}

/** What mambac feeds to an auxiliary input when each slot has seen `starts` tokens and `length` more come. */
export function auxiliaryMemory(input: Auxiliary, starts: readonly number[], length: number): Memory {
  const first = starts[0] ?? 0;
  const steps = Array.from({ length }, (_, i) => i);
  switch (input.name) {
    case "position_ids":
      if (input.rank === 1)
        return integerMemory(
          input.dtype,
          [length],
          steps.map((i) => first + i),
        );
      return integerMemory(
        input.dtype,
        [starts.length, length],
        starts.flatMap((start) => steps.map((i) => start + i)),
      );
    case "cache_position":
      return integerMemory(
        input.dtype,
        [length],
        steps.map((i) => first + i),
      );
    case "attention_mask": {
      const total = first + length;
      return integerMemory(
        input.dtype,
        [starts.length, total],
        Array.from({ length: starts.length * total }, () => 1),
      );
    }
    case "num_logits_to_keep":
      // Zero means all of them.
      return integerMemory(input.dtype, input.rank === 0 ? [] : [1], [0]);
    default:
      return input.name satisfies never;
  }
}

/** Writes integers into memory made by `integerMemory`; a shorter memory takes the first ones. */
function integerWriter(memory: Memory): (values: Tokens | readonly number[]) => void {
  const { bytes, dtype } = memory;
  if (dtype === "i64") {
    const view = new BigInt64Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 8);
    return (values) => {
      for (let i = 0; i < view.length; i++) view[i] = BigInt(values[i] ?? 0);
    };
  }
  invariant(dtype === "i32", `tokens and positions of type ${dtype}`);
  const view = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  return (values) => {
    for (let i = 0; i < view.length; i++) view[i] = values[i] ?? 0;
  };
}
