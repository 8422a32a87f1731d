/**
 * The truth about quantized projections: which of them ONNX Runtime really runs as integer or low-bit kernels, read from
 * the graph it made of the model.
 */

import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { attrInt, type Graph, type Node } from "../ir/graph.js";
import { readModelBytes } from "../onnx/read.js";
import { TemporaryFiles } from "../onnx/temporary-files.js";
import { openNativeSession } from "./native-session.js";
import { ROUNDS_ACTIVATIONS } from "./rounding.js";

const INTEGER_KERNELS = new Set([
  "QLinearMatMul",
  "MatMulIntegerToFloat",
  "DynamicQuantizeMatMul",
  "MatMulInteger",
  "MatMulNBits",
  "QGemm",
]);

const FLOAT_KERNELS = new Set(["MatMul", "Gemm", "FusedMatMul"]);

/** Names of the factors of an online rotation: those mambac gives, and those ONNX Runtime gives inside an inlined function. */
const ROTATION_FACTOR = /\.(walsh|hadamard)\d+_|_inlfunc_HadamardRotate(Q8)?_/;

export interface KernelCensus {
  /** Projections that run on integers or unpack low-bit weights. */
  readonly quantized: number;
  /** Projections in all: products with a constant matrix, or with several at once (Einsum). */
  readonly projections: number;
  /** Those of them whose operator rounds the activations itself, though the file gives them as floats (MatMulNBits, level 4). */
  readonly roundsActivations: number;
  /** Count of each kernel, by operator name. */
  readonly kernels: ReadonlyMap<string, number>;
  /** Projections that still multiply floats. */
  readonly float: readonly FloatProjection[];
}

export interface FloatProjection {
  /** As ONNX Runtime names the node: as the file does, or after a node of the file. */
  readonly node: string;
  readonly op: string;
}

/** Loads a model with every optimisation and counts what its projections became. `MatMul` inside operators is not counted. */
export async function kernelCensus(path: string): Promise<KernelCensus> {
  const temporary = new TemporaryFiles();
  const folder = temporary.folder(tmpdir(), "mambac-census-");
  try {
    const optimized = join(folder, "optimized.onnx");
    const session = await openNativeSession(path, { optimization: "all", optimizedModelPath: optimized });
    session.close();
    // Weights the optimiser left alone are still named relative to the model they came from.
    return countKernels(readModelBytes(readFileSync(optimized), dirname(path)).model.graph);
  } finally {
    temporary.close();
  }
}

function countKernels(graph: Graph): KernelCensus {
  const kernels = new Map<string, number>();
  const float: FloatProjection[] = [];
  let quantized = 0;
  let roundsActivations = 0;
  // A weight that is dequantized in every call is multiplied in float all the same.
  const dequantized = new Set(
    graph.nodes.flatMap(({ op, inputs, outputs }) =>
      op === "DequantizeLinear" && graph.initializers.get(inputs[0] ?? "")?.shape.length === 2 ? outputs : [],
    ),
  );
  for (const node of graph.nodes) {
    const constants = node.inputs.filter(
      (input) => dequantized.has(input) || graph.initializers.get(input)?.shape.length === 2,
    );
    const isInteger = INTEGER_KERNELS.has(node.op);
    const isFloat = FLOAT_KERNELS.has(node.op) ? constants.length > 0 : isWeightEinsum(node, graph);
    // The factors of an online rotation are no projections.
    if (!isInteger && (!isFloat || constants.some((input) => ROTATION_FACTOR.test(input)))) continue;
    kernels.set(node.op, (kernels.get(node.op) ?? 0) + 1);
    if (node.op === "MatMulNBits" && attrInt(node, "accuracy_level", 0) === ROUNDS_ACTIVATIONS) roundsActivations += 1;
    if (isInteger) quantized += 1;
    else float.push({ node: node.name || (node.outputs[0] ?? ""), op: node.op });
  }
  return { quantized, projections: quantized + float.length, roundsActivations, kernels, float };
}

/** The projections of several directions at once; what the functions of operators compute is none. */
function isWeightEinsum({ op, name, inputs }: Node, { initializers }: Graph): boolean {
  if (op !== "Einsum" || name.startsWith("_inlfunc_")) return false;
  return inputs.some((input) => (initializers.get(input)?.shape.length ?? 0) > 1);
}
