import { describe, expect, it } from "vitest";
import { typed } from "../../src/ir/builder.js";
import type { Model, ValueInfo } from "../../src/ir/graph.js";
import { readModel } from "../../src/onnx/read.js";
import { readSignature, STATES_KEY } from "../../src/run/signature.js";
import { countModel } from "../support/count-model.js";
import { fixture } from "../support/fixture-models.js";

const IDS: ValueInfo = typed("input_ids", "i64", ["b", "l"]);
const LOGITS: ValueInfo = typed("logits", "f32", ["b", "l", 9]);

function modelWith(inputs: readonly ValueInfo[], outputs: readonly ValueInfo[], states?: string): Model {
  const base = countModel();
  const metadata = new Map(states === undefined ? [] : [[STATES_KEY, states]]);
  return { ...base, metadata, graph: { ...base.graph, inputs, outputs } };
}

describe("readSignature", () => {
  it.each([
    ["past_ssm.3", "present_ssm.3"],
    ["past_conv.0", "present_conv.0"],
    ["past_recurrent.1", "present_recurrent.1"],
    ["past_states.2.ssm_state", "present.2.ssm_state"],
    ["past_states.2.conv_state", "present_states.2.conv_state"],
    ["past_key_values.0.key", "present.0.key"],
    ["past_key_values.0.recurrent_state", "present.0.recurrent_state"],
    ["past_key_values.0.value", "present_key_values.0.value"],
    ["input.cache_params.layers.0.conv_states.0", "output.cache_params.layers.0.conv_states.0"],
    ["past.0", "present.0"],
  ])("pairs %s with %s", (input, output) => {
    const model = modelWith(
      [IDS, typed(input, "f32", ["b", 4])],
      [LOGITS, typed("other", "f32", ["b"]), typed(output, "f32", ["b", 4])],
    );
    expect(readSignature(model).states).toEqual([{ input, output, dtype: "f32", shape: ["b", 4], growthAxis: null }]);
  });

  it("believes the metadata over names", () => {
    const states = JSON.stringify([{ input: "h", output: "h_new", note: "ignored" }]);
    const model = modelWith([IDS, typed("h", "u8", ["b", 2, 3])], [LOGITS, typed("h_new", "u8", ["b", 2, 3])], states);
    expect(readSignature(model).states.map((s) => [s.input, s.output, s.dtype])).toEqual([["h", "h_new", "u8"]]);
  });

  it("adds attention caches that the metadata does not name", () => {
    const states = JSON.stringify([{ input: "past.0", output: "odd" }]);
    const cache = (name: string, length: string): ValueInfo => typed(name, "f32", ["b", 2, length, 8]);
    const model = modelWith(
      [IDS, typed("past.0", "u8", ["b", 3]), cache("past_key_values.1.key", "past")],
      [LOGITS, typed("odd", "u8", ["b", 3]), typed("present.0", "u8", ["b", 3]), cache("present.1.key", "total")],
      states,
    );
    expect(readSignature(model).states.map((s) => [s.input, s.output, s.growthAxis])).toEqual([
      ["past.0", "odd", null],
      ["past_key_values.1.key", "present.1.key", 2],
    ]);
  });

  it("tells growing state from fixed state, and reads lengths spelled as symbols", () => {
    const { states, auxiliaries } = readSignature(readModel(fixture("hf/jamba/decode.onnx")).model);
    expect(states.map((s) => [s.input.split(".").slice(3).join("."), s.growthAxis, s.shape.slice(1)])).toEqual([
      ["0.conv_states.0", null, [64, "s85"]],
      ["0.recurrent_states.0", null, [64, 8]],
      ["1.keys", 2, [2, "s36", 8]],
      ["1.values", 2, [2, "s36", 8]],
    ]);
    expect(auxiliaries).toEqual([{ name: "position_ids", dtype: "i64", rank: 2 }]);
  });

  it("knows a plain forward graph", () => {
    const signature = readSignature(readModel(fixture("hf/mamba2/prefill.onnx")).model);
    expect(signature.states).toEqual([]);
    expect(signature.tokens).toMatchObject({ name: "input_ids", dtype: "i64" });
    expect(signature.logits.shape.at(-1)).toBe(96);
  });

  it("finds token ids and logits under other names when there is no doubt", () => {
    const model = modelWith([typed("x", "i32", ["b", 1])], [typed("y", "f16", ["b", 1, 9])]);
    expect(readSignature(model)).toMatchObject({
      tokens: { name: "x", dtype: "i32", length: 1 },
      logits: { name: "y", dtype: "f16" },
    });
  });

  it.each<readonly [string, Model, RegExp]>([
    ["an input without meaning", modelWith([IDS, typed("pixel_values", "f32", ["b", 3])], [LOGITS]), /pixel_values/],
    ["a state without output", modelWith([IDS, typed("past_ssm.0", "f32", ["b", 3])], [LOGITS]), /past_ssm\.0/],
    ["no token input", modelWith([typed("x", "f32", ["b", 3])], [LOGITS]), /no input for token ids/],
    ["token ids of another rank", modelWith([typed("input_ids", "i64", ["l"])], [LOGITS]), /\[batch, length\]/],
    ["no logits", modelWith([IDS], [typed("a", "f32", ["b"]), typed("b", "f32", ["b"])]), /no output named logits/],
    [
      "a state that changes its type",
      modelWith([IDS, typed("past_a", "f32", ["b", 3])], [LOGITS, typed("present_a", "f16", ["b", 3])]),
      /one type and known rank/,
    ],
    ["metadata that is not JSON", modelWith([IDS], [LOGITS], "{"), /not JSON/],
    ["metadata that is no list", modelWith([IDS], [LOGITS], "{}"), /is not an array/],
    ["metadata without names", modelWith([IDS], [LOGITS], '[{"input": "h"}]'), /without input and output/],
    ["metadata of another graph", modelWith([IDS], [LOGITS], '[{"input": "h", "output": "g"}]'), /lacks its input h/],
  ])("refuses %s", (_, model, message) => {
    expect(() => readSignature(model)).toThrow(message);
  });
});
