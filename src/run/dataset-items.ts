/** Calibration data of models that read no tokens: items such as pictures, one a sequence, in .npy files of float32. */

import { createHash } from "node:crypto";
import type { Graph } from "../ir/graph.js";
import { elementCount } from "../ir/types.js";
import { Random } from "../support/random.js";
import { type Dataset, type DatasetOptions, order, RANDOM_DATA, requireCounts, taken } from "./dataset.js";
import { npyItems } from "./dataset-arrays.js";
import { DataFile, dataError } from "./dataset-source.js";

type ItemOptions = Omit<DatasetOptions, "vocabulary" | "tokenizer" | "sequenceLength">;

/**
 * Opens items for the one input of a graph; the word `random` stands for normal numbers. Throws `dataset/...` with exit
 * code 5: other types and shapes, several inputs, an input whose size is not fixed.
 */
export async function openItems(options: ItemOptions, graph: Graph): Promise<Dataset> {
  const { samples = 128, seed = 0, shard = { index: 1, count: 1 }, part } = options;
  requireCounts(1, samples, seed, shard);
  const item = itemShape(graph);
  const random = options.paths.includes(RANDOM_DATA);
  if (random && options.paths.length > 1) throw dataError("random", "random data cannot be mixed with files");
  const files: DataFile[] = [];
  const close = (): void => {
    for (const file of files.splice(0)) file.close();
  };
  try {
    const sources = random
      ? [randomItems(seed, samples ?? 128, elementCount(item))]
      : options.paths.map((path) => {
          const file = new DataFile(path);
          files.push(file);
          return npyItems(file, item);
        });
    const total = sources.reduce((sum, source) => sum + source.count, 0);
    const drawn = [...order(total, samples === null ? null : new Random(seed).split("dataset"))].slice(
      0,
      samples ?? total,
    );
    if (drawn.length === 0) throw dataError("empty", `there is not one item in ${options.paths.join(", ")}`);
    const bytesAt = (at: number): Uint8Array => {
      let left = at;
      for (const source of sources) {
        if (left < source.count) return source.read(left);
        left -= source.count;
      }
      throw dataError("empty", `there is no item ${at}`);
    };
    const hash = createHash("sha256");
    for (const at of drawn) hash.update(bytesAt(at));
    const tokensSha256 = hash.digest("hex");
    const hashes = files.map((file) => file.sha256());
    const [first = tokensSha256] = hashes;
    const sha256 = hashes.length <= 1 ? first : createHash("sha256").update(hashes.join("\n")).digest("hex");
    const mine = taken(shard, part);
    const own = drawn.flatMap((at, index) => (mine(index) ? [{ at, index }] : []));
    if (own.length === 0) throw dataError("part", `there are ${drawn.length} items, too few for what was asked`);
    return {
      description: {
        sha256,
        tokensSha256,
        random,
        sequenceLength: 1,
        seed,
        sequences: drawn.length,
        tokens: drawn.length,
      },
      shard,
      count: own.length,
      longest: 1,
      async *sequences() {
        for (const { at, index } of own) {
          const bytes = bytesAt(at);
          const values = new Float32Array(bytes.slice().buffer);
          yield await Promise.resolve({ index, tokens: new Int32Array(0), item: values });
        }
      },
      close,
    };
  } catch (cause) {
    close();
    throw cause;
  }
}

/** Shape of an item: that of the graph's input without its batch. */
function itemShape(graph: Graph): number[] {
  const inputs = graph.inputs.filter(({ name }) => !graph.initializers.has(name));
  const type = inputs.length === 1 ? inputs[0]?.type : null;
  const shape = type?.kind === "tensor" ? (type.shape?.slice(1) ?? []) : [];
  const sizes = shape.filter((size) => typeof size === "number");
  if (sizes.length === 0 || sizes.length !== shape.length) {
    throw dataError(
      "input",
      `the model reads ${inputs.map(({ name }) => name).join(", ")}; items are for one input of a fixed size`,
    );
  }
  return sizes;
}

function randomItems(
  seed: number,
  count: number,
  size: number,
): { readonly count: number; readonly read: (at: number) => Uint8Array } {
  const random = new Random(seed).split("random-items");
  return {
    count,
    read: (at) => {
      const own = random.split(String(at));
      return new Uint8Array(Float32Array.from({ length: size }, () => own.normal()).buffer);
    },
  };
}
