/** The core of mambac, which knows no particular pass. What users import is `api`, which puts the two together. */

export { type AutoChoice, chooseRecipe } from "./commands/auto.js";
export { benchCommand } from "./commands/bench.js";
export { buildOpsCommand } from "./commands/build-ops.js";
export {
  calibrateCommand,
  calibrateMergeCommand,
} from "./commands/calibrate.js";
export { calibrateRecipeCommand } from "./commands/calibrate-recipe.js";
export { compareCommand } from "./commands/compare.js";
export { compileCommand, type PassLibrary } from "./commands/compile.js";
export { evalCommand } from "./commands/eval.js";
export { reportFailure } from "./commands/failure.js";
export { generateCommand } from "./commands/generate.js";
export { inspectCommand } from "./commands/inspect.js";
export { packageCommand } from "./commands/package.js";
export {
  type RecipeLibrary,
  recipeListCommand,
  recipeSchemaCommand,
  recipeShowCommand,
  resolveRecipe,
} from "./commands/recipe.js";
export { type SensitivityPlan, sensitivityCommand } from "./commands/sensitivity.js";
export type { Terminal } from "./commands/terminal.js";
export { verifyCommand } from "./commands/verify.js";
export type { Candidate } from "./compare.js";
export {
  type CompileOptions,
  type CompileReport,
  type CompilerPasses,
  compile,
  type LayerRow,
  VERSION,
} from "./compile.js";
export { executor } from "./executable.js";
export type { Model } from "./ir/graph.js";
export { formatModel } from "./ir/text.js";
export { type Diagnostic, verifyModel } from "./ir/verify.js";
export { readModel } from "./onnx/read.js";
export { requireWritable, writeModel } from "./onnx/write.js";
export {
  FLOAT_TYPES,
  type FloatType,
  REQUANTIZE_MODES,
  type Requantize,
  STATE_FORMATS,
  STATE_SCALES,
  type StateFormat,
  type StateScale,
} from "./ops/names.js";
export type { Fact, Remark } from "./rewrite/pass.js";
export { runSteps } from "./rewrite/pipeline.js";
export { FLOAT_STATE, type StateChoice } from "./rewrite/semantic.js";
export { readCalibration } from "./run/calibration-files.js";
export type { DatasetDescription } from "./run/dataset.js";
export {
  type Comparison,
  type EvaluateOptions,
  type Evaluation,
  evaluate,
} from "./run/evaluate.js";
export { type Generated, type GenerateOptions, generate, generateBatch } from "./run/generate.js";
export { type KernelCensus, kernelCensus } from "./run/kernel-census.js";
export type { LibraryChoice } from "./run/locate.js";
export { type Logits, logitsRow } from "./run/logits.js";
export type { EvaluateMode } from "./run/logits-source.js";
export { openOrtGemm } from "./run/ort-gemm.js";
export type { SamplingOptions } from "./run/sampling.js";
export { type LoadOptions, loadPackage } from "./run/stateful.js";
export type { LoadedPackage, StateSnapshot, Tokens } from "./run/stateful-model.js";
export { byteTokenizer, loadTokenizer, type StreamDecoder, type Tokenizer } from "./run/tokenizer.js";
export { EXIT, type ExitCode, InvariantError, MambacError } from "./support/errors.js";
export { fileProblem } from "./support/file-problem.js";
