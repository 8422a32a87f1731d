/** `mambac package`: parsing only. */

import type { Command } from "commander";
import { packageCommand, type Terminal } from "../src/index.js";

interface PackageFlags {
  readonly triton?: string;
  readonly genai?: string;
  readonly hf?: string;
  readonly library: string;
  readonly tokenizer?: string;
  readonly force?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** Adds the command. */
export function addPackage(program: Command, terminal: Terminal, outcome: { code: number }): void {
  program
    .command("package")
    .description("write the folder a runtime wants: a Triton model, an ONNX Runtime GenAI model, the layout of the Hub")
    .argument("<out>", "the compiled file")
    .option("--triton <folder>", "model repository; the model's folder in it is named like the file")
    .option("--genai <folder>", "model folder of ONNX Runtime GenAI; compile with --state-names genai")
    .option("--hf <folder>", "layout of the Hub and transformers.js; compile with --state-names transformersjs")
    .option("--tokenizer <folder>", "folder of the source model: its tokenizer and configuration files are copied")
    .option("--library <file>", "the op library to ship: auto, none or a path", "none")
    .option("--force", "replace the files of an earlier package; other files stay")
    .option("--json", "one JSON document on stdout")
    .option("-q, --quiet", "nothing but notes and errors")
    .action(async (model: string, flags: PackageFlags) => {
      const { triton = null, genai = null, hf = null, tokenizer = null, library } = flags;
      const { force = false, json = false, quiet = false } = flags;
      outcome.code = await packageCommand(
        { model, triton, genai, hf, tokenizer, library, force, json, quiet },
        terminal,
      );
    });
}
