/** The public interface of mambac. Passes come from `mambac/passes`. */

export { type AutoChoice, type AutoOptions, chooseRecipe } from "./commands/auto.js";
export { type BenchCommandOptions, benchCommand } from "./commands/bench.js";
export {
  type CalibrateCommandOptions,
  type CalibrateMergeCommandOptions,
  calibrateCommand,
  calibrateMergeCommand,
} from "./commands/calibrate.js";
export { type CalibrateRecipeCommandOptions, calibrateRecipeCommand } from "./commands/calibrate-recipe.js";
export { type CompareCommandOptions, compareCommand } from "./commands/compare.js";
export { type CompileCommandOptions, compileCommand, type PassLibrary } from "./commands/compile.js";
export { type EvalCommandOptions, evalCommand } from "./commands/eval.js";
export { reportFailure } from "./commands/failure.js";
export { type GenerateCommandOptions, generateCommand } from "./commands/generate.js";
export { type InspectCommandOptions, inspectCommand } from "./commands/inspect.js";
export {
  type RecipeLibrary,
  recipeListCommand,
  recipeSchemaCommand,
  recipeShowCommand,
  resolveRecipe,
} from "./commands/recipe.js";
export { type SensitivityCommandOptions, type SensitivityPlan, sensitivityCommand } from "./commands/sensitivity.js";
export type { Terminal } from "./commands/terminal.js";
export { type VerifyCommandOptions, verifyCommand } from "./commands/verify.js";
export { type Candidate, type ComparedRow, compareCandidates } from "./compare.js";
export {
  type CompileOptions,
  type CompileReport,
  type CompilerPasses,
  compile,
  type DecidedRecipe,
  type LayerRow,
  prepare,
  type RaisedPair,
  VERSION,
} from "./compile.js";
export { requireWritable } from "./onnx/write.js";
export {
  REQUANTIZE_MODES,
  type Requantize,
  STATE_FORMATS,
  STATE_SCALES,
  type StateFormat,
  type StateScale,
} from "./ops/names.js";
export type { Remark } from "./rewrite/pass.js";
export { FLOAT_STATE, type StateChoice } from "./rewrite/semantic.js";
export {
  type Comparison,
  type EvaluateOptions,
  type Evaluation,
  evaluate,
} from "./run/evaluate.js";
export { type Generated, type GenerateOptions, generate, generateBatch } from "./run/generate.js";
export type { LibraryChoice } from "./run/locate.js";
export { type Logits, logitsRow } from "./run/logits.js";
export type { EvaluateMode } from "./run/logits-source.js";
export type { SamplingOptions } from "./run/sampling.js";
export { type LoadOptions, loadPackage } from "./run/stateful.js";
export type { LoadedPackage, StateSnapshot, Tokens } from "./run/stateful-model.js";
export { byteTokenizer, loadTokenizer, type StreamDecoder, type Tokenizer } from "./run/tokenizer.js";
export { EXIT, type ExitCode, InvariantError, MambacError } from "./support/errors.js";
export { fileProblem } from "./support/file-problem.js";
