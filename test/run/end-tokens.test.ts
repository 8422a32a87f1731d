import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { endTokens } from "../../src/run/end-tokens.js";
import { byteTokenizer } from "../../src/run/tokenizer.js";
import { scratchFolder } from "../support/count-model.js";

function folderOf(files: Readonly<Record<string, unknown>>): string {
  const folder = scratchFolder();
  for (const [name, value] of Object.entries(files)) {
    writeFileSync(join(folder, name), typeof value === "string" ? value : JSON.stringify(value));
  }
  return folder;
}

function found(...folders: string[]): {
  readonly ids: readonly number[] | null;
  readonly file: string | null;
  readonly told: string[];
} {
  const told: string[] = [];
  const ends = endTokens(folders, byteTokenizer, (message) => told.push(message));
  return { ids: ends?.ids ?? null, file: ends?.path.split(/[\\/]/).at(-1) ?? null, told };
}

test("the file about generating comes first, then the model's, then the tokenizer's", () => {
  const generation = { "generation_config.json": { eos_token_id: [1, 2] } };
  const model = { "config.json": { eos_token_id: 3, bos_token_id: 9 } };
  const tokenizer = { "tokenizer_config.json": { eos_token: "!" } };
  const all = folderOf({ ...generation, ...model, ...tokenizer });
  expect(found(all)).toEqual({ ids: [1, 2], file: "generation_config.json", told: [] });
  expect(found(folderOf({ ...model, ...tokenizer }))).toMatchObject({ ids: [3], file: "config.json" });
  expect(found(folderOf(tokenizer))).toMatchObject({ ids: [33], file: "tokenizer_config.json" });
});

test("a file that names none leaves it to the next, and a folder to the next", () => {
  const silent = folderOf({ "generation_config.json": { eos_token_id: null }, "config.json": {} });
  expect(found(silent)).toEqual({ ids: null, file: null, told: [] });
  const loud = folderOf({ "tokenizer_config.json": { eos_token: { content: "." } } });
  expect(found(silent, loud)).toMatchObject({ ids: [46] });
  expect(found(folderOf({}), join(loud, "absent"))).toMatchObject({ ids: null });
});

test("what is no token is not taken", () => {
  for (const eos_token_id of ["2", -1, 1.5, [], {}, [null]]) {
    expect(found(folderOf({ "config.json": { eos_token_id } })).ids, JSON.stringify(eos_token_id)).toBeNull();
  }
  expect(found(folderOf({ "config.json": { eos_token_id: [-1, 0] } })).ids).toEqual([0]);
  // Several tokens are no end that one token could be compared with.
  expect(found(folderOf({ "tokenizer_config.json": { eos_token: "</s>" } })).ids).toBeNull();
  expect(found(folderOf({ "tokenizer_config.json": { eos_token: "" } })).ids).toBeNull();
  expect(found(folderOf({ "config.json": "null" })).ids).toBeNull();
});

test("files that cannot be read are told and passed over", () => {
  const folder = folderOf({ "generation_config.json": "{", "config.json": { eos_token_id: 7 } });
  const { ids, told } = found(folder);
  expect(ids).toEqual([7]);
  expect(told).toEqual([expect.stringMatching(/generation_config\.json is not asked .*: it is not JSON$/)]);
  const odd = folderOf({});
  mkdirSync(join(odd, "config.json"));
  expect(found(odd)).toMatchObject({ ids: null, told: [expect.stringMatching(/config\.json .*: it is a folder$/)] });
});
