/**
 * Small models as they are after recognition: semantic scans and convolutions between projections, norms and gates, in
 * the spellings recognised graphs have, with parts that a careless fold would break.
 */

import { GraphBuilder } from "../../src/ir/builder.js";
import { attr, type Graph, type Model, makeGraph, makeModel, makeValue } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { elementCount, tensorType } from "../../src/ir/types.js";
import { convNode, FLOAT_STATE, SEMANTIC_DOMAIN, scanNode } from "../../src/rewrite/semantic.js";
import { Random } from "../../src/support/random.js";
import type { RaisedSpelling } from "./raised-spelling.js";

/** Token ids are below it. */
export const VOCABULARY = 17;
const KERNEL = 3;

/** The model of a spelling: input_ids i64[batch, length] -> logits, and whatever a decoy exposes. States are absent. */
export function raisedModel(spelling: RaisedSpelling): Model {
  return new RaisedWriter(spelling).model();
}

class RaisedWriter {
  readonly #s: RaisedSpelling;
  readonly #b = new GraphBuilder("");
  readonly #random: Random;
  readonly #outputs: string[] = ["logits"];

  constructor(spelling: RaisedSpelling) {
    this.#s = spelling;
    this.#random = new Random(spelling.seed);
  }

  model(): Model {
    const { layers, dModel, head } = this.#s;
    const table = this.#weight("embedding", [VOCABULARY, dModel], 1);
    let h = this.#b.op("Gather", [table, "input_ids"], { axis: 0 });
    if (this.#s.scaled) h = this.#b.op("Mul", [h, this.#scalar(1.5)]);
    for (let layer = 0; layer < layers; layer++) h = this.#layer(h, layer);
    const last = this.#norm(h, "final_norm", this.#s.norm);
    if (head === "own") this.#b.op("MatMul", [last, this.#weight("head", [dModel, VOCABULARY])], {}, "logits");
    else {
      const weight = head === "tied" ? table : this.#weight("head", [VOCABULARY, dModel]);
      this.#b.op("MatMul", [last, this.#b.op("Transpose", [weight], { perm: [1, 0] })], {}, "logits");
    }
    return modelOf(this.#graph());
  }

  #graph(): Graph {
    const { nodes, initializers } = this.#b;
    const ids = makeValue("input_ids", tensorType("i64", ["batch", "length"]));
    const outputs = this.#outputs.map((name) =>
      makeValue(name, tensorType("f32", ["batch", "length", name === "logits" ? VOCABULARY : null])),
    );
    return makeGraph({ name: "raised", inputs: [ids], outputs, nodes, initializers });
  }

  #layer(h: string, layer: number): string {
    const { decoy, mlp } = this.#s;
    const name = `layers.${layer}`;
    let stream = h;
    if (decoy === "stream-tanh") stream = this.#b.op("Tanh", [stream]);
    if (decoy === "stream-constant") stream = this.#b.op("Add", [stream, this.#weight("offset", [this.#s.dModel])]);
    if (decoy === "stream-reciprocal") {
      stream = this.#b.op("Div", [this.#scalar(1), this.#b.op("Add", [stream, this.#scalar(9)])]);
    }
    if (decoy === "stream-square") {
      const square = this.#b.op("Pow", [stream, this.#scalar(2)]);
      const squares = this.#plainLinear(square, `${name}.squares`, this.#s.dModel, this.#s.dModel);
      stream = this.#b.op("Add", [stream, squares]);
    }
    if (decoy === "stream-output") this.#outputs.push(this.#b.op("Identity", [stream], {}, `${name}.stream`));
    const normed = this.#norm(stream, `${name}.norm`, this.#s.norm, true);
    const mixed = this.#mixer(normed, name);
    if (mlp === "parallel") {
      return this.#b.op("Add", [stream, this.#b.op("Add", [mixed, this.#mlp(normed, name)])]);
    }
    const next = this.#b.op("Add", [stream, mixed]);
    return mlp === "none"
      ? next
      : this.#b.op("Add", [this.#mlp(this.#norm(next, `${name}.mlp_norm`, this.#s.norm), name), next]);
  }

  #mlp(x: string, name: string): string {
    const { dModel, sharedWeight } = this.#s;
    const up = this.#plainLinear(x, `${name}.up`, dModel, dModel);
    const gate = sharedWeight
      ? this.#b.op("MatMul", [x, this.#named(`${name}.up`)])
      : this.#plainLinear(x, `${name}.gate`, dModel, dModel);
    const active = this.#b.op("Mul", [up, this.#b.op("Mul", [gate, this.#b.op("Sigmoid", [gate])])]);
    return this.#plainLinear(active, `${name}.down`, dModel, dModel);
  }

  #norm(x: string, label: string, kind: RaisedSpelling["norm"], mayDecoy: boolean = false): string {
    const { dModel, decoy } = this.#s;
    if (kind === "operator") {
      const gain = this.#gain(label, dModel);
      return this.#exposed(
        this.#b.op("SimplifiedLayerNormalization", [x, gain], { axis: -1, epsilon: attr.float(1e-5) }),
        label,
        mayDecoy,
      );
    }
    const source = mayDecoy && decoy === "foreign-scale" ? this.#b.op("Tanh", [x]) : x;
    const normed = this.#normalised(x, source);
    if (kind === "bare") return this.#exposed(normed, label, mayDecoy);
    const gain = mayDecoy && decoy === "scalar-gain" ? this.#scalar(0.75) : this.#gain(label, dModel);
    return this.#exposed(this.#b.op("Mul", kind === "gain-left" ? [gain, normed] : [normed, gain]), label, mayDecoy);
  }

  #exposed(value: string, label: string, mayDecoy: boolean): string {
    if (mayDecoy && this.#s.decoy === "norm-output") {
      this.#outputs.push(this.#b.op("Identity", [value], {}, `${label}.seen`));
    }
    if (mayDecoy && this.#s.decoy === "norm-reader") {
      this.#outputs.push(this.#b.op("Tanh", [value], {}, `${label}.tanh`));
    }
    return value;
  }

  /** x / rms(source). */
  #normalised(x: string, source: string): string {
    const square = this.#b.op("Pow", [source, this.#scalar(2)]);
    const mean = this.#b.op("ReduceMean", [square, this.#b.ints([-1])], { keepdims: 1 });
    const root = this.#b.op("Sqrt", [this.#b.op("Add", [mean, this.#scalar(1e-5)])]);
    switch (this.#s.root) {
      case "direct":
        return this.#b.op("Div", [x, root]);
      case "div":
        return this.#b.op("Mul", [x, this.#b.op("Div", [this.#scalar(1), root])]);
      default:
        return this.#b.op("Mul", [x, this.#b.op("Reciprocal", [root])]);
    }
  }

  #mixer(x: string, name: string): string {
    return this.#s.family === "mamba1" ? this.#mamba1(x, name) : this.#mamba2(x, name);
  }

  #mamba2(x: string, name: string): string {
    const { dModel, heads, headDim, dState, groups, decoy, gatedNorm } = this.#s;
    const [inner, bc] = [heads * headDim, groups * dState];
    const channels = inner + 2 * bc;
    const total = inner + channels + heads;
    let all = this.#linear(x, `${name}.in_proj`, dModel, total);
    if (decoy === "in-bias") all = this.#b.op("Add", [all, this.#weight(`${name}.in_bias`, [total])]);
    if (decoy === "gate-reader") this.#outputs.push(this.#b.op("Tanh", [all], {}, `${name}.all_columns`));
    const [z = "", stream = "", dt = ""] = this.#split(all, [inner, channels, heads]);
    const y = this.#conv(stream, name, channels);
    const [xs = "", B = "", C = ""] = this.#split(y, [inner, bc, bc]);
    const scanned = this.#scan(name, [
      this.#reshape(xs, [heads, headDim]),
      dt,
      this.#decay(`${name}.A`, [heads]),
      this.#reshape(B, [groups, dState]),
      this.#reshape(C, [groups, dState]),
      this.#weight(`${name}.D`, [heads, headDim]),
      this.#weight(`${name}.dt_bias`, [heads]),
      "",
    ]);
    const flat = this.#reshape(scanned, [inner]);
    if (gatedNorm === "before" || gatedNorm === "before-grouped") {
      const normed = this.#gatedNorm(flat, `${name}.gated_norm`, inner, gatedNorm === "before" ? "gain" : "grouped");
      return this.#output(this.#b.op("Mul", [normed, this.#silu(z)]), name, inner);
    }
    const gated = this.#b.op("Mul", [flat, this.#silu(z)]);
    return this.#output(this.#gatedNorm(gated, `${name}.gated_norm`, inner, gatedNorm), name, inner);
  }

  #gatedNorm(x: string, label: string, inner: number, kind: RaisedSpelling["gatedNorm"]): string {
    if (kind === "none") return x;
    if (kind === "bare") return this.#normalised(x, x);
    if (kind === "gain") return this.#b.op("Mul", [this.#gain(label, inner), this.#normalised(x, x)]);
    const parts = this.#reshape(x, [2, inner / 2]);
    return this.#b.op("Mul", [this.#gain(label, inner), this.#reshape(this.#normalised(parts, parts), [inner])]);
  }

  #mamba1(x: string, name: string): string {
    const { dModel, dState, dtRank, decoy, dtLeft, channelsFirst } = this.#s;
    const inner = this.#s.heads * this.#s.headDim * 2;
    let all = this.#linear(x, `${name}.in_proj`, dModel, 2 * inner);
    if (decoy === "in-bias") all = this.#b.op("Add", [all, this.#weight(`${name}.in_bias`, [2 * inner])]);
    if (decoy === "gate-reader") this.#outputs.push(this.#b.op("Tanh", [all], {}, `${name}.all_columns`));
    const [stream = "", z = ""] = channelsFirst
      ? this.#b.ops("Split", [this.#swap(all), this.#b.ints([inner, inner])], 2, { axis: 1 })
      : this.#split(all, [inner, inner]);
    const y = this.#conv(channelsFirst ? this.#swap(stream) : stream, name, inner);
    const width = dtRank + 2 * dState;
    let low = this.#linear(y, `${name}.x_proj`, inner, width);
    if (decoy === "x-bias") low = this.#b.op("Add", [low, this.#weight(`${name}.x_bias`, [width])]);
    const [lowRank = "", B = "", C = ""] = this.#split(low, [dtRank, dState, dState]);
    let delta = lowRank;
    if (decoy === "dt-reader") this.#outputs.push(this.#b.op("Tanh", [delta], {}, `${name}.delta`));
    if (decoy === "dt-norm") {
      delta = this.#b.op("Mul", [this.#gain(`${name}.dt_gain`, dtRank), this.#normalised(delta, delta)]);
    }
    const dt = dtLeft
      ? this.#swap(
          this.#b.op("MatMul", [this.#weight(`${name}.dt_proj`, [inner, dtRank], 1 / dtRank), this.#swap(delta)]),
        )
      : this.#linear(delta, `${name}.dt_proj`, dtRank, inner);
    const scanned = this.#scan(name, [
      y,
      dt,
      this.#decay(`${name}.A`, [inner, dState]),
      this.#reshape(B, [1, dState]),
      this.#reshape(C, [1, dState]),
      this.#weight(`${name}.D`, [inner]),
      this.#weight(`${name}.dt_bias`, [inner]),
      "",
    ]);
    const gated = channelsFirst
      ? this.#swap(this.#b.op("Mul", [this.#swap(scanned), this.#silu(z)]))
      : this.#b.op("Mul", [scanned, this.#silu(z)]);
    return this.#output(gated, name, inner);
  }

  #output(x: string, name: string, inner: number): string {
    const { dModel, scaled, outBias, decoy } = this.#s;
    if (decoy === "out-reader") {
      this.#outputs.push(this.#b.op("MatMul", [x, this.#weight(`${name}.probe`, [inner, 3])], {}, `${name}.probed`));
    }
    let y = this.#linear(x, `${name}.out_proj`, inner, dModel);
    if (outBias) y = this.#b.op("Add", [y, this.#weight(`${name}.out_bias`, [dModel])]);
    if (decoy === "scalar-bias") y = this.#b.op("Add", [this.#scalar(0.5), y]);
    if (decoy === "writer-reader") this.#outputs.push(this.#b.op("Tanh", [y], {}, `${name}.written`));
    return scaled ? this.#b.op("Mul", [y, this.#scalar(0.7)]) : y;
  }

  #scan(name: string, inputs: readonly string[]): string {
    const { family, heads, headDim, dState, groups } = this.#s;
    const y = this.#b.fresh("scan");
    this.#b.nodes.push(
      scanNode(
        {
          layer: name,
          form: "chunked",
          family,
          heads: family === "mamba1" ? heads * headDim * 2 : heads,
          headDim: family === "mamba1" ? 1 : headDim,
          dState,
          groups: family === "mamba1" ? 1 : groups,
          dtMin: Number.NEGATIVE_INFINITY,
          dtMax: Number.POSITIVE_INFINITY,
          stateLayout: "PN",
          error: 0,
          state: FLOAT_STATE,
        },
        inputs,
        [y, ""],
      ),
    );
    return y;
  }

  /** [B, L, C] -> [B, L, C]. */
  #conv(x: string, name: string, channels: number): string {
    const y = this.#b.fresh("conv");
    const weight = this.#weight(`${name}.conv`, [channels, 1, KERNEL], 0.5);
    const bias = this.#weight(`${name}.conv_bias`, [channels]);
    this.#b.nodes.push(
      convNode(
        {
          layer: name,
          form: "conv",
          channels,
          kernelSize: KERNEL,
          stateWidth: KERNEL - 1,
          activation: "silu",
          error: 0,
        },
        [this.#swap(x), weight, bias, ""],
        [y, ""],
      ),
    );
    return this.#swap(y);
  }

  #linear(x: string, label: string, from: number, to: number): string {
    const { projection } = this.#s;
    const flat = (): string => this.#b.op("Reshape", [x, this.#b.ints([-1, from])], { allowzero: 0 });
    const unflat = (y: string): string => {
      const sizes = this.#b.op("Shape", ["input_ids"]);
      return this.#b.op("Reshape", [y, this.#b.op("Concat", [sizes, this.#b.ints([to])], { axis: 0 })]);
    };
    const bias = (): string => this.#weight(`${label}.bias`, [to], 0.1);
    switch (projection) {
      case "gemm":
        return unflat(this.#b.op("Gemm", [flat(), this.#weight(label, [from, to])]));
      case "gemm-transposed":
        return unflat(this.#b.op("Gemm", [flat(), this.#weight(label, [to, from], 1 / from), bias()], { transB: 1 }));
      case "gemm-scaled":
        return unflat(
          this.#b.op("Gemm", [flat(), this.#weight(label, [from, to]), bias()], { alpha: attr.float(0.5) }),
        );
      case "transposed": {
        const weight = this.#weight(label, [to, from], 1 / from);
        return this.#b.op("MatMul", [x, this.#b.op("Transpose", [weight], { perm: [1, 0] })]);
      }
      default:
        return this.#plainLinear(x, label, from, to);
    }
  }

  #plainLinear(x: string, label: string, from: number, to: number): string {
    return this.#b.op("MatMul", [x, this.#weight(label, [from, to])]);
  }

  #silu(z: string): string {
    return this.#b.op("Mul", [z, this.#b.op("Sigmoid", [z])]);
  }

  #split(x: string, sizes: readonly number[]): string[] {
    return this.#b.ops("Split", [x, this.#b.ints(sizes)], sizes.length, { axis: 2 });
  }

  #swap(x: string): string {
    return this.#b.op("Transpose", [x], { perm: [0, 2, 1] });
  }

  #reshape(x: string, sizes: readonly number[]): string {
    return this.#b.op("Reshape", [x, this.#b.ints([0, 0, ...sizes])], { allowzero: 0 });
  }

  #scalar(value: number): string {
    return this.#b.initializer(f32Tensor([], [value]), "scalar");
  }

  #gain(label: string, size: number): string {
    return this.#filled(label, [size], (normal) => 1 + 0.4 * normal());
  }

  /** Negative numbers: -exp(normal). */
  #decay(label: string, shape: readonly number[]): string {
    return this.#filled(label, shape, (normal) => -Math.exp(0.5 * normal()));
  }

  /** Normal numbers of variance `variance`, by default one over the rows. */
  #weight(label: string, shape: readonly number[], variance: number = 1 / (shape[0] ?? 1)): string {
    const deviation = Math.sqrt(variance);
    return this.#filled(label, shape, (normal) => deviation * normal());
  }

  #filled(label: string, shape: readonly number[], value: (normal: () => number) => number): string {
    const random = this.#random.split(label);
    const values = Float32Array.from({ length: elementCount(shape) }, () => value(() => random.normal()));
    const name = this.#named(label);
    if (!this.#b.initializers.has(name)) this.#b.initializers.set(name, f32Tensor(shape, values));
    return name;
  }

  #named(label: string): string {
    return `${label}.weight`;
  }
}

function modelOf(graph: Graph): Model {
  return makeModel(graph, {
    opsets: new Map([
      ["", 21],
      [SEMANTIC_DOMAIN, 1],
    ]),
  });
}
