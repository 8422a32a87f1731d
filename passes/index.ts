/** Every pass by name, alphabetical, and what passes are made of. */

import type { Pass } from "../src/rewrite/pass.js";
import { absorbNormGain } from "./absorb-norm-gain.js";
import { alignLinears } from "./align-linears.js";
import { clipPercentile } from "./clip-percentile.js";
import { completeStates } from "./complete-states.js";
import { divideNorm } from "./divide-norm.js";
import { emitNbits } from "./emit-nbits.js";
import { freeLength } from "./free-length.js";
import { fuseConv } from "./fuse-conv.js";
import { fuseGate } from "./fuse-gate.js";
import { fuseQuantize } from "./fuse-quantize.js";
import { insertQdq } from "./insert-qdq.js";
import { lower } from "./lower.js";
import { mergePair } from "./merge-pair.js";
import { narrowFloats } from "./narrow-floats.js";
import { normalise } from "./normalise.js";
import { quantizeState } from "./quantize-state.js";
import { raiseAttention } from "./raise-attention.js";
import { raiseConv } from "./raise-conv.js";
import { raiseScan } from "./raise-scan.js";
import { renameStates } from "./rename-states.js";
import { rotateDt } from "./rotate-dt.js";
import { rotateOutput } from "./rotate-output.js";
import { rotateResidual } from "./rotate-residual.js";
import { rotateState } from "./rotate-state.js";
import { roundClipped } from "./round-clipped.js";
import { roundEmbedding } from "./round-embedding.js";
import { roundGptq } from "./round-gptq.js";
import { roundNearest } from "./round-nearest.js";
import { roundTanh } from "./round-tanh.js";
import { searchPrecision } from "./search-precision.js";
import { smoothAwq } from "./smooth-awq.js";
import { smoothQuant } from "./smooth-quant.js";
import { sortCluster } from "./sort-cluster.js";
import { tidy } from "./tidy.js";
import { widenHalves } from "./widen-halves.js";

export const PASSES: Readonly<Record<string, Pass<never>>> = Object.freeze({
  "absorb-norm-gain": absorbNormGain,
  "align-linears": alignLinears,
  "clip-percentile": clipPercentile,
  "complete-states": completeStates,
  "divide-norm": divideNorm,
  "emit-nbits": emitNbits,
  "free-length": freeLength,
  "fuse-conv": fuseConv,
  "fuse-gate": fuseGate,
  "fuse-quantize": fuseQuantize,
  "insert-qdq": insertQdq,
  lower,
  "merge-pair": mergePair,
  "narrow-floats": narrowFloats,
  normalise,
  "quantize-state": quantizeState,
  "raise-attention": raiseAttention,
  "raise-conv": raiseConv,
  "raise-scan": raiseScan,
  "rename-states": renameStates,
  "rotate-dt": rotateDt,
  "rotate-output": rotateOutput,
  "rotate-residual": rotateResidual,
  "rotate-state": rotateState,
  "round-clipped": roundClipped,
  "round-embedding": roundEmbedding,
  "round-gptq": roundGptq,
  "round-nearest": roundNearest,
  "round-tanh": roundTanh,
  "search-precision": searchPrecision,
  "smooth-awq": smoothAwq,
  "smooth-quant": smoothQuant,
  "sort-cluster": sortCluster,
  tidy,
  "widen-halves": widenHalves,
});

export { GraphBuilder } from "../src/ir/builder.js";
export {
  type Attribute,
  attr,
  attrFloat,
  attrInt,
  attrInts,
  attrString,
  type Graph,
  type Model,
  makeGraph,
  makeModel,
  makeNode,
  makeValue,
  type Node,
  type UseIndex,
  useIndex,
  type ValueInfo,
} from "../src/ir/graph.js";
export { boolTensor, f32Tensor, i64Tensor, type Tensor, tensorFromBytes, toNumbers } from "../src/ir/tensor.js";
export type { DType, ValueType } from "../src/ir/types.js";
export type { StatRequest } from "../src/quant/calibration.js";
export { parseWeightScheme, type WeightScheme } from "../src/quant/scheme.js";
export type { Statistics } from "../src/quant/statistics.js";
export { GraphEdit } from "../src/rewrite/edit.js";
export {
  definePass,
  type Exactness,
  type Fact,
  type Pass,
  type PassContext,
  type PassResult,
  type Remark,
} from "../src/rewrite/pass.js";
export { calibratedStep, type Step, step } from "../src/rewrite/pipeline.js";
export { QDQ_PROFILES, type QdqProfile } from "../src/rewrite/qdq-profile.js";
export { type SemanticOp, semanticOps } from "../src/rewrite/semantic.js";
export { type LinearRole, type LinearSite, type MambaBlock, type Sites, sitesOf } from "../src/rewrite/sites.js";
export { quantizesActivations } from "./half-recipes.js";
export { SCAN_TARGETS, type ScanTarget } from "./lower.js";
export { TRUSTS, type Trust } from "./merge-pair.js";
export { AUTO_CANDIDATES, PRESETS, presetNamed, type QuantRecipe } from "./quant-recipes.js";
export { formatRecipe, readRecipe, recipeSchema } from "./recipe-file.js";
export { type PassChoices, passesFor, type RecipePasses } from "./recipes.js";
export { STATE_STYLES, type StateStyle } from "./rename-states.js";
export {
  absorbNormGain,
  alignLinears,
  clipPercentile,
  completeStates,
  divideNorm,
  emitNbits,
  freeLength,
  fuseGate,
  fuseQuantize,
  insertQdq,
  lower,
  mergePair,
  narrowFloats,
  normalise,
  quantizeState,
  raiseAttention,
  raiseConv,
  raiseScan,
  renameStates,
  rotateDt,
  rotateOutput,
  rotateResidual,
  rotateState,
  roundClipped,
  roundEmbedding,
  roundGptq,
  roundNearest,
  roundTanh,
  searchPrecision,
  smoothAwq,
  smoothQuant,
  sortCluster,
  tidy,
  widenHalves,
};
