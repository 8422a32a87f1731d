/** One step of the recurrence, and the factors of all steps at once, in every order of products and readout. */

import { type Axed, type Writer } from "./writer.js";

/** What a scan reads. Axes: x [b l h (p)], steps [b l h (p)], B and C [b l (h) n]; no l in a single step. */
export interface ScanInputs {
  readonly x: Axed;
  readonly steps: Axed;
  readonly B: Axed;
  readonly C: Axed;
  readonly A: Axed;
  readonly D: Axed | null;
  /** State input [b h (p) n]; null for zeros. */
  readonly past: string | null;
}

export interface ScanResult {
  readonly y: Axed;
  readonly state: string;
}

/** Axes of the state. */
export function stateAxes(w: Writer): string {
  return w.spelling.family === "mamba1" ? "bhn" : "bhpn";
}

/** exp(d A). */
export function decayOf(w: Writer, steps: Axed, A: Axed): Axed {
  const product = w.mul(steps, A);
  if (w.spelling.sabotage !== "token-dependent-a") return w.unary("Exp", product);
  const wobble = w.unary("Sigmoid", steps);
  return w.unary("Exp", w.mul(product, wobble));
}

/** d x B. */
export function inputTermOf(w: Writer, inputs: Pick<ScanInputs, "x" | "steps" | "B">): Axed {
  const { x, steps, B } = inputs;
  if (w.spelling.sabotage === "input-without-dt") return w.mul(B, x);
  return w.spelling.inputTerm === "dt-b-first" ? w.mul(w.mul(steps, B), x) : w.mul(w.mul(steps, x), B);
}

/** h' = decay h + input. */
export function updateOf(w: Writer, state: Axed, decay: Axed, input: Axed): Axed {
  const { sabotage } = w.spelling;
  if (sabotage === "state-not-carried") return w.add(w.mul(decay, w.mul(decay, input)), input);
  const decayed = w.mul(decay, state);
  return w.add(sabotage === "decay-twice" ? w.mul(decay, decayed) : decayed, input);
}

/** sum_n h C, with C [b (h) n]. */
export function readoutOf(w: Writer, state: Axed, C: Axed): Axed {
  const out = Array.from(state.axes)
    .filter((axis) => axis !== "n")
    .join("");
  switch (w.spelling.readout) {
    case "einsum":
      return w.contract([state, C], out, "einsum");
    case "mul-sum":
      return w.contract([state, C], out, "mul-sum");
    default: {
      // [b h p n] x [b h n 1], [b h n] x [b n 1]
      const lead = state.axes.slice(0, -2);
      const column = `${lead}nr`;
      const columns = w.align({ name: w.op("Unsqueeze", [C.name, w.ints([-1])]), axes: `${C.axes}r` }, column);
      const product = w.op("MatMul", [state.name, columns]);
      return { name: w.op("Squeeze", [product, w.ints([-1])]), axes: out };
    }
  }
}

/** y + D x. */
export function withSkip(w: Writer, y: Axed, inputs: Pick<ScanInputs, "x" | "steps" | "D">): Axed {
  const { x, steps, D } = inputs;
  if (D === null) return y;
  const fed = w.spelling.sabotage === "skip-on-input-term" ? w.mul(x, steps) : x;
  return w.add(y, w.mul(D, fed));
}

/** One whole step on values without the axis l. */
export function oneStep(
  w: Writer,
  state: Axed,
  decay: Axed,
  input: Axed,
  C: Axed,
): { readonly y: Axed; readonly state: Axed } {
  const axes = stateAxes(w);
  const next = w.transposed(updateOf(w, state, decay, input), axes);
  const { sabotage } = w.spelling;
  const read = sabotage === "late-readout" ? state : next;
  return { y: readoutOf(w, read, C), state: next };
}

/** The readout vector: C, or B where the model is to be wrong. */
export function readoutVector(w: Writer, inputs: ScanInputs): Axed {
  return w.spelling.sabotage === "readout-with-b" ? inputs.B : inputs.C;
}
