import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import {
  type CalibrationHeader,
  mergeHeaders,
  requestKey,
  requireFresh,
  type StatRequest,
  tableOf,
  WHOLE,
} from "../../src/quant/calibration.js";
import { CalibrationWriter, readCalibration } from "../../src/run/calibration-files.js";

const root = mkdtempSync(join(tmpdir(), "mambac-table-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(root, "case-"));
});

const HEADER: CalibrationHeader = {
  version: "0.1.0",
  modelSha256: "aa".repeat(32),
  dataSha256: "bb".repeat(32),
  tokensSha256: "cc".repeat(32),
  requestsSha256: "dd".repeat(32),
  random: false,
  sequenceLength: 512,
  seed: 0,
  sequences: 128,
  tokens: 65_536,
  shards: WHOLE,
};

const STATISTICS: readonly (readonly [StatRequest, Uint8Array])[] = [
  [{ value: "linear_2", kind: "absmax", perChannel: true }, Uint8Array.of(1, 2, 3)],
  [{ value: "linear_10", kind: "percentile", perChannel: false }, new Uint8Array(5 << 20).fill(7)],
  [{ value: "linear_10", kind: "absmax", perChannel: false }, new Uint8Array(0)],
  [{ value: 'na"me', kind: "second-moment", perChannel: true }, Uint8Array.of(9)],
];

function write(path: string, statistics = STATISTICS, header = HEADER): void {
  const writer = new CalibrationWriter(path);
  try {
    for (const [request, bytes] of statistics) writer.add(request, bytes);
    writer.finish(header);
  } finally {
    writer.close();
  }
}

describe("tables on disk", () => {
  it("read back as written, and lie in two files", () => {
    const path = join(folder, "table.json");
    write(path);
    expect(readdirSync(folder).sort()).toEqual(["table.json", "table.json.bin"]);
    const table = readCalibration(path);
    expect(table.header).toEqual(HEADER);
    expect(table.requests.map(requestKey).sort()).toEqual(STATISTICS.map(([request]) => requestKey(request)).sort());
    for (const [request, bytes] of STATISTICS) {
      expect(Buffer.from(table.encoded(request) ?? [0, 0]).equals(bytes)).toBe(true);
    }
    expect(table.encoded({ value: "linear_2", kind: "absmax", perChannel: false })).toBeNull();
  });

  it("have the same bytes whatever the order and the name", () => {
    write(join(folder, "a.json"));
    write(join(folder, "b.json"), STATISTICS.toReversed());
    for (const ending of ["", ".bin"]) {
      const bytes = readFileSync(join(folder, `a.json${ending}`));
      expect(bytes.equals(readFileSync(join(folder, `b.json${ending}`)))).toBe(true);
      expect(bytes.includes(folder)).toBe(false);
    }
  });

  it("replace older ones, and leave nothing behind when they are not finished", () => {
    const path = join(folder, "table.json");
    write(path);
    write(path, STATISTICS.slice(1), { ...HEADER, seed: 3 });
    expect(readCalibration(path).header.seed).toBe(3);
    expect(readCalibration(path).requests).toHaveLength(3);
    const before = readFileSync(path);
    const writer = new CalibrationWriter(path);
    writer.add({ value: "x", kind: "absmax", perChannel: true }, Uint8Array.of(1));
    writer.close();
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(readdirSync(folder).sort()).toEqual(["table.json", "table.json.bin"]);
  });

  it("cannot be written where there is no folder", () => {
    expect(() => new CalibrationWriter(join(folder, "absent", "t.json"))).toThrow(
      expect.objectContaining({ code: "calibration/write", exitCode: 2 }),
    );
  });
});

describe("damaged tables are refused", () => {
  const refused = (path: string, message: RegExp): void => {
    let error: unknown = null;
    try {
      readCalibration(path);
    } catch (cause) {
      error = cause;
    }
    expect(error).toMatchObject({ code: "calibration/read", exitCode: 5 });
    expect(String(error)).toMatch(message);
    expect(String(error)).toContain(path);
  };

  it("missing, of another format, or not JSON", () => {
    const path = join(folder, "t.json");
    refused(path, /no such file/);
    writeFileSync(path, "{");
    refused(path, /not a JSON file/);
    writeFileSync(path, "[]");
    refused(path, /damaged/);
    writeFileSync(path, '{"format":"other"}');
    refused(path, /not a calibration table/);
    write(path);
    writeFileSync(path, readFileSync(path, "utf8").replace('"formatVersion": 1', '"formatVersion": 9'));
    refused(path, /format 9/);
  });

  it("without their numbers, or with those of others", () => {
    const path = join(folder, "t.json");
    write(path);
    const numbers = readFileSync(`${path}.bin`);
    const other = join(folder, "other.json");
    write(other, [
      [STATISTICS[0]?.[0] ?? { value: "", kind: "absmax", perChannel: true }, new Uint8Array(numbers.length)],
    ]);
    copyFileSync(`${other}.bin`, `${path}.bin`);
    refused(path, /of another table, or damaged/);
    writeFileSync(`${path}.bin`, numbers.subarray(1));
    refused(path, /cut short/);
    rmSync(`${path}.bin`);
    refused(path, /missing or cut short/);
  });

  it("with any field missing", () => {
    const path = join(folder, "t.json");
    write(path);
    const document = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
    for (const key of Object.keys(document)) {
      const { [key]: _gone, ...rest } = document;
      writeFileSync(path, JSON.stringify(rest));
      refused(path, /t\.json: /);
    }
    expect(existsSync(`${path}.bin`)).toBe(true);
    appendFileSync(`${path}.bin`, "more");
    writeFileSync(path, JSON.stringify(document));
    expect(readCalibration(path).requests).toHaveLength(4);
  });
});

describe("requireFresh", () => {
  const table = tableOf(HEADER, new Map(STATISTICS.map(([request, bytes]) => [requestKey(request), bytes])));
  const error = (action: () => void): unknown => {
    try {
      action();
    } catch (cause) {
      return cause;
    }
    return null;
  };

  it("accepts what fits", () => {
    const { modelSha256, tokensSha256 } = HEADER;
    expect(error(() => requireFresh(table, { modelSha256, tokensSha256 }, "t"))).toBeNull();
    expect(error(() => requireFresh(table, {}, "t"))).toBeNull();
  });

  it.each([
    [{ modelSha256: "00".repeat(32) }, "calibration/stale", /another model/],
    [{ tokensSha256: "00".repeat(32) }, "calibration/stale", /other data/],
  ])("refuses %o", (expected, code, message) => {
    const refused = error(() => requireFresh(table, expected, "t.json"));
    expect(refused).toMatchObject({ code, exitCode: 5 });
    expect(String(refused)).toMatch(message);
    expect(String(refused)).toContain("t.json");
  });

  it("refuses some shards of a table", () => {
    const part = tableOf({ ...HEADER, shards: { count: 3, done: [2] } }, new Map());
    const refused = error(() => requireFresh(part, {}, "t.json"));
    expect(refused).toMatchObject({ code: "calibration/incomplete", exitCode: 5 });
    expect(String(refused)).toMatch(/lacks shard 1, 3 of 3/);
  });
});

describe("mergeHeaders", () => {
  const shard = (count: number, ...done: number[]): CalibrationHeader => ({ ...HEADER, shards: { count, done } });

  it("joins shards in any order; all of them make a whole table", () => {
    const two = mergeHeaders(shard(3, 3), shard(3, 1));
    expect(two.shards).toEqual({ count: 3, done: [1, 3] });
    expect(mergeHeaders(two, shard(3, 2))).toEqual(HEADER);
    expect(mergeHeaders(shard(2, 2), shard(2, 1))).toEqual(HEADER);
  });

  it("refuses shards that overlap or are of different calibrations, saying in what", () => {
    expect(() => mergeHeaders(shard(3, 1, 2), shard(3, 2))).toThrow(/both hold shard 2 of 3/);
    expect(() => mergeHeaders(HEADER, HEADER)).toThrow(/both hold shard 1/);
    expect(() => mergeHeaders(shard(3, 1), shard(2, 2))).toThrow(/numbers of shards/);
    const other = { ...shard(3, 2), seed: 1, modelSha256: "" };
    expect(() => mergeHeaders(shard(3, 1), other)).toThrow(
      expect.objectContaining({ code: "calibration/mismatch", exitCode: 5 }),
    );
    expect(() => mergeHeaders(shard(3, 1), other)).toThrow(/models, seeds/);
  });
});
