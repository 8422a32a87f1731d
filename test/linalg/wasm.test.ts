import { describe, expect, it } from "vitest";
import {
  advance,
  assembleLoops,
  constant,
  f64x2,
  get,
  load,
  loadSplat64,
  repeat,
  store,
} from "../../src/linalg/wasm.js";

describe("assembleLoops", () => {
  // b[i] -= a[i] * c, two at a time; the addresses need one, two and three bytes.
  const [turns, at] = [0, 1];
  const loops = assembleLoops(2, [
    {
      name: "subtract",
      parameters: ["i32"],
      locals: ["i32"],
      body: repeat(turns, [
        ...store(
          get(at),
          70000,
          f64x2.sub(load(get(at), 70000), f64x2.mul(load(get(at), 8000), loadSplat64(constant(64), 0))),
        ),
        ...advance(at, constant(16)),
      ]),
    },
  ]);

  it("assembles loops over memory that the caller sees", () => {
    expect(loops).not.toBeNull();
    if (loops === null) return;
    const length = 300;
    new Float64Array(loops.memory, 64, 1)[0] = 3;
    const a = new Float64Array(loops.memory, 8000, length).map((_, i) => Math.sin(i));
    new Float64Array(loops.memory, 8000, length).set(a);
    const b = new Float64Array(loops.memory, 70000, length);
    b.forEach((_, i) => (b[i] = i / 7));
    loops.call("subtract", length / 2 - 10);
    b.forEach((value, i) => expect(value).toBe(i < length - 20 ? i / 7 - Math.sin(i) * 3 : i / 7));
  });

  it("is null for what does not validate", () => {
    expect(assembleLoops(1, [{ name: "broken", parameters: [], locals: [], body: get(3) }])).toBeNull();
  });
});
