/** Compiles a model of pictures and measures it against what its source gives. */

import { join } from "node:path";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { encodeModel, writeModel } from "../../src/onnx/write.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import { openPlainModel, randomInputs } from "../../src/run/plain-model.js";
import { openSession } from "../../src/run/session.js";
import { compileWith, type FixtureRow, relative } from "./fixture-row.js";
import { type VisionKind, visionModel } from "./mamba-graphs/vision.js";
import { DEFAULT_SIZES, DEFAULT_SPELLING, type Spelling } from "./mamba-graphs.js";
import { readNpz } from "./npz.js";

export interface PictureCase {
  readonly name: string;
  readonly file: string;
  /** Scans the model was written with. */
  readonly scans: number;
  readonly inputs: ReadonlyMap<string, Tensor>;
  readonly expected: ReadonlyMap<string, Float64Array>;
}

/** A fixture with the outputs PyTorch gave. */
export function pictureFixture(name: string, file: string): PictureCase {
  const data = readNpz(file.replace(".onnx", ".io.npz"));
  const [pixels, classes] = [data.get("pixels"), data.get("classes")];
  if (pixels === undefined || classes === undefined) throw new Error(`${file} lacks pixels or classes`);
  return {
    name,
    file,
    scans: name.includes("vim") ? 4 : 2,
    inputs: new Map([["pixels", f32Tensor(pixels.shape, toNumbers(pixels))]]),
    expected: new Map([["classes", toNumbers(classes)]]),
  };
}

/** Generated models of pictures, by name. */
export const GENERATED_PICTURES: readonly (readonly [string, VisionKind, Partial<Spelling>])[] = [
  ["vim_unrolled", "vim", { form: "unrolled" }],
  ["ss2d_chunks", "ss2d", { form: "cumsum", parallel: "chunks", readout: "einsum" }],
  ["ss2d_associative", "ss2d", { form: "associative", parallel: "odd-even" }],
  ["mamba_vision_loop", "mamba-vision", { form: "loop", readout: "einsum" }],
];

/** Writes a generated model and runs it as it is. */
export async function generatedPicture(
  [name, kind, changes]: (typeof GENERATED_PICTURES)[number],
  folder: string,
): Promise<PictureCase> {
  const sizes = { ...DEFAULT_SIZES.mamba1, heads: 6 };
  const model: Model = visionModel(sizes, { ...DEFAULT_SPELLING, ...changes }, { kind, side: 4 }, 3);
  const file = join(folder, "picture.onnx");
  await writeModel(model, file);
  const inputs = randomInputs(model.graph, 2, 1);
  const session = await openSession(encodeModel(model));
  try {
    const given = await session.run(inputs);
    const expected = new Map([...given].map(([output, tensor]) => [output, toNumbers(tensor)]));
    return { name: `generated/${name}`, file, scans: kind === "vim" ? 4 : 2, inputs, expected };
  } finally {
    await session.release();
  }
}

const TOLERANCE = 1e-4;

/** The row: a picture has no tokens, so nothing is split and nothing decoded. */
export async function pictureRow(given: PictureCase, folder: string): Promise<FixtureRow> {
  const output = join(folder, "out.onnx");
  const report = await compileWith([given.file], output, FLOAT_STATE);
  const scans = report.rows.filter(({ kind }) => kind === "scan");
  const model = await openPlainModel(output, { library: "none" });
  let error = 0;
  try {
    const actual = await model.run(given.inputs);
    for (const [name, wanted] of given.expected) {
      const tensor = actual.get(name);
      error = Math.max(error, tensor === undefined ? Infinity : relative(toNumbers(tensor), wanted));
    }
  } finally {
    await model.close();
  }
  return {
    name: given.name,
    ok: scans.length === given.scans && report.rows.every(({ states }) => states.length === 0) && error <= TOLERANCE,
    found: scans.length,
    expected: given.scans,
    form: [...new Set(scans.map((row) => row.form))].join(","),
    proof: Math.max(...report.rows.map((row) => row.error)),
    prefill: error,
    split: null,
    decode: null,
    h8: "-",
    h4: "-",
    note: "no state",
  };
}
