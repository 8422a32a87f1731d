/** The functions of operators that give codes: their float forms' results, rounded as QuantizeLinear does. */

import { expect, test } from "vitest";
import { type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { openSession } from "../../src/run/session.js";
import { codesModel, codesOf, GRIDS, gridFeeds } from "./codes-case.js";
import { GATES, gateFeeds, gateModel } from "./gate-case.js";
import { rotationCase, rotationFeeds, rotationModel } from "./rotation-case.js";

const CASES: readonly (readonly [string, Uint8Array, Map<string, Tensor>, string])[] = [
  ...GATES.map((gate) => [JSON.stringify(gate), gateModel(gate, 2), gateFeeds(gate, 2, [2, 3], 5), "out"] as const),
  ...[12, 7, 96, 160].map((size) => {
    const rotation = rotationCase(size);
    return [`rotation of ${size}`, rotationModel(rotation, 3), rotationFeeds(rotation, [2, 3], 6), "y"] as const;
  }),
];

async function only(model: Uint8Array, feeds: ReadonlyMap<string, Tensor>, name: string): Promise<Tensor> {
  const session = await openSession(model, { optimization: "disabled" });
  const tensor = (await session.run(feeds)).get(name);
  await session.release();
  if (tensor === undefined) throw new Error(`no ${name}`);
  return tensor;
}

test.each(CASES)("%s", async (_label, model, feeds, name) => {
  const floats = await only(model, feeds, name);
  const seen = new Set<string>();
  for (const grid of GRIDS) {
    const codes = await only(codesModel(model, grid), new Map([...feeds, ...gridFeeds(grid)]), name);
    expect(codes.dtype).toBe(grid.type);
    expect(codes.shape).toEqual(floats.shape);
    expect([...toNumbers(codes)]).toEqual(codesOf(floats, grid));
    for (const code of toNumbers(codes)) seen.add(`${grid.scale} ${code}`);
  }
  expect(seen.size).toBeGreaterThan(10);
});
