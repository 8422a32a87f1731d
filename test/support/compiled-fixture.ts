/** Fixture models compiled once with f32 states, for tests that run them. */

import type { Model } from "../../src/ir/graph.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import { readSignature } from "../../src/run/signature.js";
import { fixture } from "./fixture-models.js";
import { compileWith } from "./fixture-row.js";

const compiled = new Map<string, Promise<Model>>();

/** The lowered model of `hf/<name>`, as a pair. */
export function compiledFixture(name: string): Promise<Model> {
  let model = compiled.get(name);
  if (model === undefined) {
    const files = ["prefill", "decode"].map((role) => fixture(`hf/${name}/${role}.onnx`));
    model = compileWith(files, null, FLOAT_STATE).then((report) => report.model);
    compiled.set(name, model);
  }
  return model;
}

/** Every float result of a main-graph node that a run gives, except states. */
export function floatValues(model: Model): string[] {
  const states = new Set(readSignature(model).states.map((state) => state.output));
  return model.graph.nodes
    .filter((node) => /^(MatMul|Mul|Add|Gather|CausalConv.*|Mamba.*|Sigmoid|Transpose)$/.test(node.op))
    .flatMap((node) => (node.domain === "" ? node.outputs : node.outputs.slice(0, 1)))
    .filter((name) => name !== "" && !states.has(name));
}
