import { describe, expect, it } from "vitest";
import { formatWeightScheme, MSE_CLIP, parseWeightScheme } from "../../src/quant/scheme.js";
import { MambacError } from "../../src/support/errors.js";

describe("parseWeightScheme", () => {
  it.each([
    "i4:g128",
    "u4:g32:mse",
    "i8:channel",
    "i8:in-channel",
    "i8:tensor",
    "i4:g128:span:f16",
    "u2:g64:mse:f16",
    "i3:g1",
  ])("reads %s and writes it back", (text) => expect(formatWeightScheme(parseWeightScheme(text))).toBe(text));

  it("means what it says", () => {
    expect(parseWeightScheme("u4:g32:mse")).toEqual({
      bits: 4,
      granularity: { kind: "group", axis: 0, size: 32 },
      zero: { kind: "asymmetric" },
      clip: MSE_CLIP,
      scaleType: "f32",
    });
    expect(parseWeightScheme("i8:channel").granularity).toEqual({ kind: "channel", axis: 1 });
  });

  it.each([
    ["", "'' is not a format"],
    ["i5:tensor", "'i5' is not a format"],
    ["f4:tensor", "'f4' is not a format"],
    ["i4", "'' is not a granularity"],
    ["i4:g0", "'g0' is not a granularity"],
    ["i4:group128", "'group128' is not a granularity"],
    ["i4:g128:fast", "'fast' is not an option"],
    ["u4:g128:span", "'span' is for symmetric formats"],
    ["i4:g128:mse:mse", "an option is given twice"],
  ])("refuses '%s'", (text, why) => {
    expect(() => parseWeightScheme(text)).toThrow(MambacError);
    expect(() => parseWeightScheme(text)).toThrow(why);
  });
});
