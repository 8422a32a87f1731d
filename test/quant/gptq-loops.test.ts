import { describe, expect, it } from "vitest";
import {
  BLOCK_ROWS,
  type BlockLoops,
  plainBlockLoops,
  STRIP_COLUMNS,
  TOGETHER,
  vectorBlockLoops,
} from "../../src/quant/gptq-loops.js";
import { Random } from "../../src/support/random.js";

function filled(loops: BlockLoops): BlockLoops {
  const random = new Random(7);
  loops.rows.forEach((_, at) => (loops.rows[at] = random.normal()));
  loops.factors.forEach((_, at) => (loops.factors[at] = random.normal()));
  return loops;
}

describe("block loops", () => {
  const vectors = vectorBlockLoops();

  it("exist with vectors on this host", () => {
    expect(vectors).not.toBeNull();
  });

  it("take errors out of the rows below, each factor from its own row and column", () => {
    const loops = filled(plainBlockLoops());
    const before = loops.rows.slice();
    const [first, j] = [16, 90];
    loops.spread(first, TOGETHER, j, j + 1);
    for (const c of [0, 1, STRIP_COLUMNS - 1]) {
      let expected = before[j * STRIP_COLUMNS + c] ?? 0;
      for (let i = first; i < first + TOGETHER; i++) {
        expected -= (loops.factors[i * BLOCK_ROWS + j] ?? 0) * (before[i * STRIP_COLUMNS + c] ?? 0);
      }
      expect(loops.rows[j * STRIP_COLUMNS + c]).toBe(expected);
    }
    before.fill(0, j * STRIP_COLUMNS, (j + 1) * STRIP_COLUMNS);
    expect(loops.rows.fill(0, j * STRIP_COLUMNS, (j + 1) * STRIP_COLUMNS)).toEqual(before);
  });

  it.each([
    [0, 1, 1, BLOCK_ROWS],
    [0, TOGETHER, TOGETHER, BLOCK_ROWS],
    [40, TOGETHER, 48, 49],
    [BLOCK_ROWS - 2, 1, BLOCK_ROWS - 1, BLOCK_ROWS],
    [5, 1, 6, 6],
  ])("give the same bits with vectors: %i, %i, %i, %i", (first, count, from, to) => {
    const [plain, fast] = [filled(plainBlockLoops()), filled(vectors ?? plainBlockLoops())];
    plain.spread(first, count, from, to);
    fast.spread(first, count, from, to);
    expect(Buffer.from(new Float64Array(fast.rows).buffer).equals(Buffer.from(plain.rows.buffer))).toBe(true);
  });
});
