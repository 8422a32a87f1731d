/** Examples at the end of each command's help. Each is run by a test. */

import type { Command } from "commander";

/** Lines of a shell, by command; with the files of `examples/demo` in place of the names here they run as they are. */
export const EXAMPLES: Readonly<Record<string, readonly string[]>> = {
  compile: [
    "mambac compile prefill.onnx -o out.onnx --state h4",
    "mambac compile prefill.onnx decode.onnx -o out.onnx --dry-run",
    "mambac compile prefill.onnx -o out.onnx --recipe w8a8h8 --calib text.txt",
    "mambac compile prefill.onnx -o out.onnx --recipe auto --max-loss 1% --calib text.txt",
  ],
  calibrate: [
    "mambac calibrate prefill.onnx --recipe w8a8h8 --data text.txt -o table.json",
    "mambac calibrate prefill.onnx --data text.txt --shard 1/2 -o part1.json",
    "mambac calibrate merge part1.json part2.json -o table.json",
  ],
  inspect: ["mambac inspect prefill.onnx decode.onnx", "mambac inspect out.onnx --json"],
  verify: [
    "mambac verify out.onnx --against prefill.onnx",
    "mambac verify out.onnx --against prefill.onnx --lengths 1,16",
  ],
  generate: [
    'mambac generate out.onnx --prompt "In the beginning"',
    'mambac generate out.onnx --prompt "In the" --temperature 0.8 --top-p 0.95 --seed 7',
  ],
  eval: [
    "mambac eval out.onnx --text text.txt",
    "mambac eval out.onnx --text text.txt --against prefill.onnx --windows 4 --mode call",
  ],
  bench: ["mambac bench out.onnx --against prefill.onnx", "mambac bench out.onnx --batch 1 --threads 1 --steps 32"],
  package: [
    "mambac package out.onnx --triton models",
    "mambac compile prefill.onnx -o names.onnx --state-names genai",
    "mambac package names.onnx --genai genai-model",
  ],
  "build-ops": ["mambac build-ops"],
  recipe: [
    "mambac recipe list",
    "mambac recipe show w8a8h8 > mine.yaml",
    "mambac compile prefill.onnx -o out.onnx --recipe mine.yaml --calib text.txt",
  ],
  compare: [
    "mambac compare prefill.onnx --recipe rtn-w4a16,w8a8h8 --calib text.txt --text other.txt",
    "mambac compare prefill.onnx --recipe w8a8h8 --calib-table table.json --text other.txt --csv",
  ],
  sensitivity: [
    "mambac sensitivity prefill.onnx --text other.txt",
    "mambac sensitivity prefill.onnx --text other.txt --calib text.txt --bits 8",
  ],
};

/** Adds them. */
export function withExamples(program: Command): void {
  for (const command of program.commands) {
    const lines = EXAMPLES[command.name()];
    if (lines !== undefined)
      command.addHelpText("after", `\nExamples:\n${lines.map((line) => `  ${line}`).join("\n")}`);
  }
}
