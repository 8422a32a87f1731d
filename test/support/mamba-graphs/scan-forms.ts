/** The forms of a scan that go token by token: step, unrolled, Loop, Scan; and LinearAttention. */

import { typed } from "../../../src/ir/builder.js";
import { boolTensor, f32Tensor } from "../../../src/ir/tensor.js";
import { zeroState } from "./layer-parts.js";
import {
  decayOf,
  inputTermOf,
  oneStep,
  readoutVector,
  type ScanInputs,
  type ScanResult,
  stateAxes,
  withSkip,
} from "./recurrence.js";
import { type Axed, attr, float, type Writer } from "./writer.js";

/** One token; no value has the axis l. */
export function stepScan(w: Writer, inputs: ScanInputs): ScanResult {
  const state: Axed = { name: inputs.past ?? zeros(w), axes: stateAxes(w) };
  const step = oneStep(w, state, decayOf(w, inputs.steps, inputs.A), inputTermOf(w, inputs), readoutVector(w, inputs));
  return { y: withSkip(w, step.y, inputs), state: step.state.name };
}

function zeros(w: Writer): string {
  const { heads, headDim, dState } = w.sizes;
  return zeroState(w, w.spelling.family === "mamba1" ? [heads, dState] : [heads, headDim, dState]);
}

/** Token t of a value, without the axis l. */
type Selector = (t: number) => Axed;

function selectorOf(w: Writer, value: Axed, length: number): Selector {
  const at = value.axes.indexOf("l");
  if (at < 0) return () => value;
  const axes = value.axes.replace("l", "");
  switch (w.spelling.selector) {
    case "split": {
      const parts = w.ops("Split", [value.name, w.ints(Array.from({ length }, () => 1))], length, { axis: at });
      return (t) => ({ name: w.op("Squeeze", [parts[t] ?? "", w.ints([at])]), axes });
    }
    case "slice-squeeze":
      return (t) => {
        const part = w.op("Slice", [value.name, w.ints([t]), w.ints([t + 1]), w.ints([at]), w.ints([1])]);
        return { name: w.op("Squeeze", [part, w.ints([at])]), axes };
      };
    default:
      return (t) => ({ name: w.op("Gather", [value.name, w.scalar(t)], { axis: at }), axes });
  }
}

/** L copies of the step. */
export function unrolledScan(w: Writer, inputs: ScanInputs): ScanResult {
  const { length, precomputed } = w.spelling;
  if (length === null) throw new Error("an unrolled scan needs a length");
  const C = selectorOf(w, readoutVector(w, inputs), length);
  let step: (t: number) => { decay: Axed; input: Axed };
  if (precomputed) {
    const decay = selectorOf(w, decayOf(w, inputs.steps, inputs.A), length);
    const input = selectorOf(w, inputTermOf(w, inputs), length);
    step = (t) => ({ decay: decay(t), input: input(t) });
  } else {
    const [x, steps, B] = [inputs.x, inputs.steps, inputs.B].map((value) => selectorOf(w, value, length));
    if (x === undefined || steps === undefined || B === undefined) throw new Error("three selectors");
    step = (t) => {
      const d = steps(t);
      return { decay: decayOf(w, d, inputs.A), input: inputTermOf(w, { x: x(t), steps: d, B: B(t) }) };
    };
  }
  let state: Axed = { name: inputs.past ?? zeros(w), axes: stateAxes(w) };
  const parts: string[] = [];
  let rowAxes = "";
  for (let t = 0; t < length; t++) {
    const { decay, input } = step(t);
    const result = oneStep(w, state, decay, input, C(t));
    state = result.state;
    rowAxes = result.y.axes;
    parts.push(result.y.name);
  }
  const axes = w.spelling.layout === "channels-first" ? `${rowAxes}l` : `b l${rowAxes.slice(1)}`.replace(" ", "");
  const at = axes.indexOf("l");
  const columns = parts.map((part) => w.op("Unsqueeze", [part, w.ints([at])]));
  const y: Axed = { name: w.op("Concat", columns, { axis: at }), axes };
  return { y: withSkip(w, y, inputs), state: state.name };
}

/** The per-token values a carried scan reads at each step. */
function carriedValues(
  w: Writer,
  inputs: ScanInputs,
): Record<"decay" | "input" | "steps" | "x" | "B" | "C", Axed | null> {
  const C = readoutVector(w, inputs);
  const { steps, x, B } = inputs;
  return w.spelling.precomputed
    ? { decay: decayOf(w, steps, inputs.A), input: inputTermOf(w, inputs), C, steps: null, x: null, B: null }
    : { decay: null, input: null, C, steps, x, B };
}

function bodyStep(
  w: Writer,
  inputs: ScanInputs,
  state: Axed,
  tokens: Readonly<Record<"decay" | "input" | "steps" | "x" | "B" | "C", Axed | null>>,
): { readonly y: Axed; readonly state: Axed } {
  const { decay, input, steps, x, B, C } = tokens;
  if (C === null) throw new Error("no readout vector");
  if (decay !== null && input !== null) return oneStep(w, state, decay, input, C);
  if (steps === null || x === null || B === null) throw new Error("a step lacks a value");
  return oneStep(w, state, decayOf(w, steps, inputs.A), inputTermOf(w, { x, steps, B }), C);
}

/** A Loop over the tokens. */
export function loopScan(w: Writer, inputs: ScanInputs): ScanResult {
  const { carry } = w.spelling;
  const { heads, headDim } = w.sizes;
  const values = carriedValues(w, inputs);
  const start = inputs.past ?? zeros(w);
  const trips = w.op("Squeeze", [w.dim("l"), w.ints([0])]);
  const yes = w.builder.constant(boolTensor([], [true]));
  const axes = stateAxes(w);
  const rows = w.spelling.family === "mamba1" ? [heads] : [heads, headDim];
  const rowAxes = w.spelling.family === "mamba1" ? "bh" : "bhp";
  const initial =
    carry === "sequence"
      ? [w.op("SequenceEmpty", [], { dtype: 1 })]
      : carry === "scatter"
        ? [
            w.op("ConstantOfShape", [w.shape(["l", "b", ...rows])], {
              value: attr.tensor(f32Tensor([1], [0])),
            }),
          ]
        : [];
  const inputsOf = [typed("iteration", "i64", []), typed("go", "bool", []), float("h_in")];
  const tag = `${w.scope}.`;
  const named = inputsOf.map((input) => ({ ...input, name: `${tag}${input.name}` }));
  const collect = `${tag}collected`;
  const bodyInputs =
    carry === "stacked"
      ? named
      : [
          ...named,
          carry === "sequence"
            ? {
                ...float(collect),
                type: {
                  kind: "sequence" as const,
                  element: { kind: "tensor" as const, dtype: "f32" as const, shape: null },
                },
              }
            : float(collect),
        ];
  const body = w.subgraph("body", bodyInputs, () => {
    const at = (value: Axed | null): Axed | null =>
      value === null || !value.axes.includes("l")
        ? value
        : {
            name: w.op("Gather", [value.name, `${tag}iteration`], { axis: value.axes.indexOf("l") }),
            axes: value.axes.replace("l", ""),
          };
    const tokens = {
      decay: at(values.decay),
      input: at(values.input),
      steps: at(values.steps),
      x: at(values.x),
      B: at(values.B),
      C: at(values.C),
    };
    const step = bodyStep(w, inputs, { name: `${tag}h_in`, axes }, tokens);
    const row = w.transposed(step.y, rowAxes).name;
    const go = w.op("Identity", [`${tag}go`]);
    const out =
      carry === "sequence"
        ? w.op("SequenceInsert", [collect, row])
        : carry === "scatter"
          ? w.op("ScatterND", [
              collect,
              w.op("Reshape", [`${tag}iteration`, w.ints([1, 1])], { allowzero: 0 }),
              w.op("Unsqueeze", [row, w.ints([0])]),
            ])
          : row;
    return [typed(go, "bool", []), float(step.state.name), { ...float(out), type: null }];
  });
  const [state = "", collected = ""] = w.ops("Loop", [trips, yes, start, ...initial], 2, { body: attr.graph(body) });
  const y: Axed =
    carry === "sequence"
      ? { name: w.op("ConcatFromSequence", [collected], { axis: 1, new_axis: 1 }), axes: `bl${rowAxes.slice(1)}` }
      : { name: collected, axes: `l${rowAxes}` };
  return { y: withSkip(w, { ...w.transposed(y, `bl${rowAxes.slice(1)}`) }, inputs), state };
}

/** An ONNX Scan over the tokens. */
export function onnxScan(w: Writer, inputs: ScanInputs): ScanResult {
  const { scanAxes, bodyFunction } = w.spelling;
  const values = carriedValues(w, inputs);
  const keys = (["decay", "input", "steps", "x", "B", "C"] as const).filter((key) => values[key] !== null);
  const axes = stateAxes(w);
  const rowAxes = w.spelling.family === "mamba1" ? "bh" : "bhp";
  const tag = `${w.scope}.`;
  const axesOf: number[] = [];
  const given = keys.map((key) => {
    const value = values[key];
    if (value === null) throw new Error("a value went missing");
    if (scanAxes === "attributes") {
      axesOf.push(value.axes.indexOf("l"));
      return value;
    }
    axesOf.push(0);
    return w.transposed(value, `l${value.axes.replace("l", "")}`);
  });
  const body = w.subgraph("body", [float(`${tag}h`), ...keys.map((key) => float(`${tag}${key}_t`))], () => {
    const write = (): readonly string[] => {
      const tokens = Object.fromEntries(
        (["decay", "input", "steps", "x", "B", "C"] as const).map((key) => {
          const value = given[keys.indexOf(key)];
          return [key, value === undefined ? null : { name: `${tag}${key}_t`, axes: value.axes.replace("l", "") }];
        }),
      ) as Readonly<Record<"decay" | "input" | "steps" | "x" | "B" | "C", Axed | null>>;
      const step = bodyStep(w, inputs, { name: `${tag}h`, axes }, tokens);
      return [w.transposed(step.state, axes).name, w.op("Identity", [w.transposed(step.y, rowAxes).name])];
    };
    const outputs = bodyFunction ? w.inFunction("scan_body", write) : write();
    return outputs.map((name) => float(name));
  });
  const start = inputs.past ?? zeros(w);
  const backward = w.spelling.direction === "scan-attribute" ? 1 : 0;
  const attributes = {
    body: attr.graph(body),
    num_scan_inputs: keys.length,
    scan_input_directions: keys.map(() => backward),
    scan_output_directions: [backward],
    ...(scanAxes === "attributes" ? { scan_input_axes: axesOf, scan_output_axes: [1] } : {}),
  };
  const [state = "", ys = ""] = w.ops("Scan", [start, ...given.map((value) => value.name)], 2, attributes);
  const tokensFirst = `bl${rowAxes.slice(1)}`;
  const y =
    scanAxes === "attributes"
      ? { name: ys, axes: tokensFirst }
      : w.transposed({ name: ys, axes: `l${rowAxes}` }, tokensFirst);
  return { y: withSkip(w, y, inputs), state };
}

/** com.microsoft LinearAttention (or ai.onnx 27): the state is [b h n p]. */
export function linearAttention(w: Writer, inputs: ScanInputs): ScanResult {
  const { heads, headDim, dState } = w.sizes;
  const { x, steps, B, C, A } = inputs;
  const flat = (value: Axed, axes: string, width: number): string =>
    w.reshape(w.exactly(value, axes), ["b", "l", width]);
  const fed = w.spelling.sabotage === "input-without-dt" ? x : w.mul(x, steps);
  const query = flat(readoutVector(w, { ...inputs, C }), "blhn", heads * dState);
  const key = flat(B, "blhn", heads * dState);
  const value = flat(fed, "blhp", heads * headDim);
  let rate = w.mul(steps, A);
  if (w.spelling.sabotage === "token-dependent-a") rate = w.mul(rate, w.unary("Sigmoid", steps));
  const decay = w.exactly(w.spelling.sabotage === "decay-twice" ? w.add(rate, w.mul(rate, rate)) : rate, "blh");
  const operands = [query, key, value, inputs.past ?? "", decay];
  const [y = "", state = ""] = w.ops(
    "LinearAttention",
    operands,
    2,
    { update_rule: "gated", scale: attr.float(1), q_num_heads: heads, kv_num_heads: heads },
    w.spelling.attentionDomain,
  );
  const rows: Axed = { name: w.reshape(y, ["b", "l", heads, headDim]), axes: "blhp" };
  return { y: withSkip(w, rows, inputs), state };
}
