/** Sources frozen at one length run at any length once compiled, and agree with themselves fed token by token. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { FROZEN_FIXTURES, LENGTH_LIMIT, LENGTHS, lengthRow } from "../support/free-lengths.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-length-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("the list is not empty", () => {
  expect(FROZEN_FIXTURES.length).toBeGreaterThanOrEqual(13);
});

test.each(FROZEN_FIXTURES)("%s", async (name) => {
  const { errors } = await lengthRow(name, folder);
  expect(errors).toHaveLength(LENGTHS.length);
  for (const error of errors) expect(error).toBeLessThan(LENGTH_LIMIT);
});
