/** The commands and flags of `mambac`: parsing only, the work is in `src/commands`. */

import { Command, CommanderError, Option } from "commander";
import { recipeDocument, recipeOf } from "../api/recipes.js";
import {
  PASSES,
  passesFor,
  QDQ_PROFILES,
  type QdqProfile,
  type QuantRecipe,
  SCAN_TARGETS,
  type ScanTarget,
  STATE_STYLES,
  type StateStyle,
  TRUSTS,
  type Trust,
} from "../passes/index.js";
import {
  benchCommand,
  buildOpsCommand,
  compileCommand,
  EXIT,
  FLOAT_TYPES,
  type FloatType,
  generateCommand,
  inspectCommand,
  MambacError,
  type PassLibrary,
  REQUANTIZE_MODES,
  type Requantize,
  reportFailure,
  requireWritable,
  STATE_FORMATS,
  STATE_SCALES,
  type StateChoice,
  type StateFormat,
  type StateScale,
  type Terminal,
  VERSION,
  verifyCommand,
} from "../src/index.js";
import { AUTO, type AutoFlags, autoChoice, requireAuto } from "./auto-recipe.js";
import { addCalibrate } from "./calibrate-command.js";
import { type CalibrationFlags, calibrationOf, withCalibration } from "./calibration-flags.js";
import { addCompare } from "./compare-command.js";
import { addEval } from "./eval-command.js";
import { withExamples } from "./examples.js";
import {
  byteCount,
  floatType,
  integer,
  integerList,
  number,
  percentage,
  positiveInteger,
  replayLength,
  tokenIds,
} from "./flag-values.js";
import { kebabFlags } from "./kebab-flags.js";
import { addPackage } from "./package-command.js";
import { addRecipe } from "./recipe-command.js";
import { addSensitivity } from "./sensitivity-command.js";

/** Runs one command line (without program name) and gives its exit code. */
export async function main(argv: readonly string[], terminal: Terminal): Promise<number> {
  const outcome: Outcome = { code: EXIT.ok };
  const program = commandLine(terminal, outcome, argv);
  try {
    await program.parseAsync(kebabFlags(argv, program), { from: "user" });
    return outcome.code;
  } catch (cause) {
    const json = argv.includes("--json");
    if (!(cause instanceof CommanderError)) return reportFailure(cause, terminal, { json });
    if (cause.exitCode === 0) return EXIT.ok;
    // Commander has told people already.
    const code = `usage/${cause.code.replace(/^commander\./, "").replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    const message = cause.message.replace(/^error: /, "");
    if (json) terminal.out(`${JSON.stringify({ error: { code, message, exitCode: EXIT.usage } }, null, 2)}\n`);
    return EXIT.usage;
  }
}

interface Outcome {
  code: number;
}

function commandLine(terminal: Terminal, outcome: Outcome, argv: readonly string[]): Command {
  const program = new Command("mambac")
    .description(
      "Compiles Mamba ONNX graphs: proves their scans, makes prefill and decode one graph, quantizes the state.",
    )
    .version(VERSION)
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({ writeOut: terminal.out, writeErr: terminal.err })
    .showHelpAfterError("(--help tells more)")
    .addHelpText(
      "after",
      "\nStart: mambac compile prefill.onnx decode.onnx -o out.onnx; mambac COMMAND --help has examples." +
        "\n\nExit codes: 0 done, 1 bug in mambac, 2 bad usage or unreadable file, 3 below the gate, 4 not supported," +
        "\n5 calibration, 130 interrupted. Every flag may be spelled with _ instead of -.",
    );
  addCompile(program, terminal, outcome, argv);
  addCalibrate(program, terminal, outcome);
  addInspect(program, terminal, outcome);
  addVerify(program, terminal, outcome);
  addGenerate(program, terminal, outcome);
  addEval(program, terminal, outcome);
  addBench(program, terminal, outcome);
  addRecipe(program, terminal, outcome);
  addCompare(program, terminal, outcome);
  addSensitivity(program, terminal, outcome);
  addPackage(program, terminal, outcome);
  addBuildOps(program, terminal, outcome);
  withExamples(program);
  return program;
}

interface StateFlags {
  readonly state: StateFormat;
  readonly stateScale: StateScale;
  readonly requantize: Requantize;
  readonly replayLength?: number;
}

interface RecipeFlags extends StateFlags {
  readonly trust?: Trust;
  readonly scan?: ScanTarget;
  readonly stateNames?: StateStyle;
}

interface ReportFlags {
  readonly json?: boolean;
  readonly quiet?: boolean;
}

interface RunFlags extends ReportFlags {
  readonly library: string;
  readonly threads: number;
}

interface CompileFlags extends RecipeFlags, ReportFlags, CalibrationFlags, AutoFlags {
  readonly output?: string;
  readonly externalData: "auto" | "always" | "never";
  readonly threads: number;
  readonly dryRun?: boolean;
  readonly printIr?: string;
  readonly stopAfter?: string;
  readonly timing?: boolean;
  readonly repro?: string;
  readonly calibTable?: string[];
  readonly qdqProfile?: QdqProfile;
  readonly float: FloatType;
}

function addCompile(program: Command, terminal: Terminal, outcome: Outcome, argv: readonly string[]): void {
  const command = program
    .command("compile")
    .description("compile one graph, a prefill and a decode graph, or a folder that holds them")
    .argument("<in...>", "the .onnx files or the folder")
    .option("-o, --output <file>", "where to write (default: beside the source, <name>.mambac.onnx)");
  withReport(withRecipe(command, "h8"))
    .addOption(
      new Option("--scan <target>", "operators to emit: mambac's own, or com.microsoft.LinearAttention (Mamba-2, f32)")
        .choices(SCAN_TARGETS)
        .default("mambac"),
    )
    .addOption(
      new Option("--float <type>", "element type of weights and activations; f16 is for devices that compute in it")
        .choices(FLOAT_TYPES)
        .argParser(floatType)
        .default("f32"),
    )
    .addOption(
      new Option("--external-data <when>", "weights in a side file: above 1 MiB, always or never")
        .choices(["auto", "always", "never"])
        .default("auto"),
    )
    .option("--recipe <recipe>", "how to quantize: a name (`mambac recipe list`), a file, FILE.yaml, or auto")
    .addOption(
      new Option("--qdq-profile <name>", "whom the recipe's quantized activations are placed for").choices(
        QDQ_PROFILES,
      ),
    )
    .option("--candidates <list>", "for the recipe auto: recipes to measure, with commas between")
    .addOption(
      new Option(
        "--max-loss <percent>",
        "for the recipe auto: most bits lost against float, of held-out text",
      ).argParser(percentage),
    )
    .addOption(
      new Option("--max-size <bytes>", "for the recipe auto: most bytes of file and state, such as 1.2MB").argParser(
        byteCount,
      ),
    );
  withCalibration(command)
    .option("--calib-table <file...>", "tables of `mambac calibrate` to take statistics from instead of data")
    .option("--dry-run", "do everything but write; tell sizes and memory")
    .option("--threads <n>", "threads of the proofs; the result does not depend on it", positiveInteger, 1)
    .option("--print-ir <pass>", "print the graph to stderr after this pass, after all, or after those that changed it")
    .option("--stop-after <pass>", "print the graph after this pass instead of writing a file")
    .option("--timing", "tell how long each pass took")
    .option("--repro <folder>", "should mambac have a bug, write what a report needs there")
    .action(async (inputs: string[], flags: CompileFlags) => {
      requireAuto(flags);
      if (flags.output !== undefined && flags.dryRun !== true) requireWritable(flags.output);
      const { qdqProfile } = flags;
      const given = (flag: keyof StateFlags): boolean => command.getOptionValueSource(flag) === "cli";
      const asWritten = (named: QuantRecipe): QuantRecipe => {
        const state = given("state") ? stateChoice(flags) : recipeState(named.state, flags, given);
        return { ...named, state, ...(qdqProfile === undefined ? {} : { qdqProfile }) };
      };
      const auto = flags.recipe === AUTO ? await autoChoice(inputs, flags, asWritten, terminal) : null;
      const spec = auto?.name ?? flags.recipe;
      const calibration = auto?.calibration ?? calibrationOf(flags);
      const recipe = spec === undefined ? null : asWritten(recipeOf(spec));
      const state = recipe?.state ?? stateChoice(flags);
      if (qdqProfile !== undefined && recipe === null) {
        throw new MambacError("usage/qdq-profile", "--qdq-profile goes with --recipe, which says what is quantized");
      }
      let decided: QuantRecipe | null = null;
      outcome.code = await compileCommand(
        {
          inputs,
          output: flags.output ?? null,
          state,
          float: flags.float,
          recipe,
          decided: () => {
            const taken = decided ?? recipe;
            return taken === null ? null : { recipe: taken, text: recipeDocument(taken, auto?.text ?? null) };
          },
          choice: auto,
          ...(calibration === undefined ? {} : { calibration }),
          tables: flags.calibTable ?? [],
          externalData: flags.externalData,
          threads: flags.threads,
          dryRun: flags.dryRun ?? false,
          ...reportOptions(flags),
          printIr: flags.printIr ?? null,
          stopAfter: flags.stopAfter ?? null,
          timing: flags.timing ?? false,
          repro: flags.repro ?? null,
          commandLine: argv,
        },
        passLibrary(flags, state, recipe, (taken) => {
          decided = taken;
        }),
        terminal,
      );
    });
}

function addInspect(program: Command, terminal: Terminal, outcome: Outcome): void {
  const command = program
    .command("inspect")
    .description("list the layers of a source or a compiled file without writing anything")
    .argument("<in...>", "a compiled file, or what compile takes");
  withReport(withRecipe(command, "f32")).action(async (inputs: string[], flags: RecipeFlags & ReportFlags) => {
    outcome.code = await inspectCommand(
      { inputs, state: stateChoice(flags), ...reportOptions(flags) },
      passLibrary(flags),
      terminal,
    );
  });
}

function addVerify(program: Command, terminal: Terminal, outcome: Outcome): void {
  const command = program
    .command("verify")
    .description("run a compiled file and its source on the same random tokens and compare")
    .argument("<out>", "the compiled file")
    .requiredOption("--against <in...>", "its source: one file, a pair, or a folder")
    .option("--lengths <list>", "sequence lengths", integerList, [1, 7, 64])
    .option("--seed <n>", "seed of the tokens", integer, 0);
  withRun(withReport(command)).action(
    async (output: string, flags: RunFlags & { against: string[]; lengths: number[]; seed: number }) => {
      const { against, lengths, seed, library, threads } = flags;
      outcome.code = await verifyCommand(
        { output, against, lengths, seed, library, threads, ...reportOptions(flags) },
        terminal,
      );
    },
  );
}

function addBuildOps(program: Command, terminal: Terminal, outcome: Outcome): void {
  const command = program
    .command("build-ops")
    .description("build the operator library with the system's C++ compiler (CXX, g++ or clang++)")
    .option("-o, --output <folder>", "where to build (default: in mambac's own folder, where sessions look)");
  withReport(command).action(async (flags: ReportFlags & { output?: string }) => {
    outcome.code = await buildOpsCommand({ output: flags.output ?? null, ...reportOptions(flags) }, terminal);
  });
}

interface GenerateFlags extends RunFlags {
  readonly prompt: string;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly seed: number;
  readonly stopTokens?: number[];
  readonly tokenizer?: string;
}

function addGenerate(program: Command, terminal: Terminal, outcome: Outcome): void {
  const command = program
    .command("generate")
    .description("continue a text")
    .argument("<out>", "the compiled file")
    .requiredOption("--prompt <text>", "the text to continue")
    .option("--max-tokens <n>", "tokens to add", positiveInteger, 100)
    .option("--temperature <t>", "0 takes the best token always", number, 0)
    .option("--top-k <k>", "choose among the k best tokens", positiveInteger)
    .option("--top-p <p>", "choose among the best tokens that share this probability", number)
    .option("--seed <n>", "seed of the choices", integer, 0)
    .option(
      "--stop-tokens <ids>",
      "end before one of these token ids, with commas between, or none (default: what the configuration beside says)",
      tokenIds,
    )
    .option("--tokenizer <file>", "tokenizer.json or its folder, or 'bytes' (default for a vocabulary of 256)")
    .option("--json", "one JSON document on stdout, with the token ids")
    .option("-q, --quiet", "nothing but the text");
  withRun(command).action(async (output: string, flags: GenerateFlags) => {
    const { prompt, maxTokens, temperature, topK, topP, seed, library, threads } = flags;
    outcome.code = await generateCommand(
      {
        output,
        prompt,
        maxTokens,
        temperature,
        ...(topK === undefined ? {} : { topK }),
        ...(topP === undefined ? {} : { topP }),
        ...(flags.stopTokens === undefined ? {} : { stopTokens: flags.stopTokens }),
        seed,
        tokenizer: flags.tokenizer ?? null,
        library,
        threads,
        ...reportOptions(flags),
      },
      terminal,
    );
  });
}

interface BenchFlags extends ReportFlags {
  readonly against?: string[];
  readonly trust?: Trust;
  readonly batch: number[];
  readonly threads: number[];
  readonly prefill: number;
  readonly steps: number;
  readonly rounds: number;
  readonly library: string;
}

function addBench(program: Command, terminal: Terminal, outcome: Outcome): void {
  const command = program
    .command("bench")
    .description("tokens a second with the op library, without it, of the source, and of it on LinearAttention")
    .argument("<out>", "the compiled file")
    .option("--against <in...>", "its source: one file, a pair, or a folder")
    .addOption(new Option("--trust <graph>", "which graph of a pair counts where they disagree").choices(TRUSTS))
    .option("--batch <list>", "sequences that run together", integerList, [1, 8, 32])
    .option("--threads <list>", "threads inside one operator", integerList, [1, 2])
    .option("--prefill <n>", "tokens of the prompt", positiveInteger, 256)
    .option("--steps <n>", "tokens decoded after it", positiveInteger, 64)
    .option("--rounds <n>", "rounds, each running everything once", positiveInteger, 5)
    .option("--library <file>", "the op library: auto, none or a path", "auto");
  withReport(command).action(async (output: string, flags: BenchFlags) => {
    const { against, batch, threads, prefill, steps, rounds, library, trust = null } = flags;
    const state: StateChoice = { format: "f32", scale: "dsq-max", requantize: "call" };
    outcome.code = await benchCommand(
      {
        output,
        against: against ?? null,
        batches: batch,
        threads,
        prefill,
        steps,
        rounds,
        library,
        ...reportOptions(flags),
      },
      passesFor({ state, trust, target: "linear-attention" }),
      terminal,
    );
  });
}

function withRecipe(command: Command, state: StateFormat): Command {
  return command
    .addOption(new Option("--state <format>", "how the recurrent state is kept").choices(STATE_FORMATS).default(state))
    .addOption(
      new Option("--state-scale <scale>", "scales of h8 and h4; static ones are frozen and need --calib")
        .choices(STATE_SCALES)
        .default("dsq-max"),
    )
    .addOption(
      new Option(
        "--requantize <when>",
        "round the state at the end of a call, after every token in it, or once in --replay-length tokens",
      )
        .choices(REQUANTIZE_MODES)
        .default("call"),
    )
    .option(
      "--replay-length <n>",
      "tokens between roundings with --requantize replay, 1 to 64; 16 unless told",
      replayLength,
    )
    .addOption(new Option("--trust <graph>", "which graph of a pair counts where they disagree").choices(TRUSTS))
    .addOption(new Option("--state-names <style>", "names of state inputs and outputs").choices(STATE_STYLES));
}

function withReport(command: Command): Command {
  return command
    .option("--json", "one JSON document on stdout")
    .option("-q, --quiet", "nothing but results asked for, warnings and errors");
}

function withRun(command: Command): Command {
  return command
    .option("--library <file>", "the op library: auto, none or a path", "auto")
    .option("--threads <n>", "threads inside one operator", positiveInteger, 1);
}

function stateChoice(flags: StateFlags): StateChoice {
  const { state: format, stateScale: scale, requantize } = flags;
  return withReplayLength({ format, scale, requantize }, flags.replayLength);
}

/** A recipe's state, changed by the flags that were given. */
function recipeState(state: StateChoice, flags: StateFlags, given: (flag: keyof StateFlags) => boolean): StateChoice {
  const scale = given("stateScale") ? flags.stateScale : state.scale;
  const requantize = given("requantize") ? flags.requantize : state.requantize;
  const length = flags.replayLength ?? (requantize === "replay" ? state.replayLength : undefined);
  return withReplayLength({ format: state.format, scale, requantize }, length);
}

function withReplayLength(choice: StateChoice, length: number | undefined): StateChoice {
  if (length === undefined) return choice;
  if (choice.requantize === "replay") return { ...choice, replayLength: length };
  throw new MambacError("usage/replay-length", "--replay-length says nothing without --requantize replay");
}

function reportOptions(flags: ReportFlags): { readonly json: boolean; readonly quiet: boolean } {
  return { json: flags.json ?? false, quiet: flags.quiet ?? false };
}

function passLibrary(
  flags: RecipeFlags & { readonly float?: FloatType },
  state: StateChoice = stateChoice(flags),
  quant: QuantRecipe | null = null,
  decided: (recipe: QuantRecipe) => void = () => undefined,
): PassLibrary {
  const { trust = null, stateNames = null, scan: target = "mambac", float = "f32" } = flags;
  return {
    names: Object.keys(PASSES),
    ...passesFor({ state, quant, decided, trust, stateNames, target, float }),
  };
}
