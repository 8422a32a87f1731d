import { expect, test } from "vitest";
import { outlierTable } from "../../src/commands/outlier-table.js";
import type { OutlierRow } from "../../src/outliers.js";

const row = (layer: string, role: OutlierRow["role"], transform: string, absMax: number): OutlierRow => ({
  transform,
  layer,
  role,
  channels: 8,
  absMax,
  medianAbsMax: 1,
  outlierChannels: 0,
  kurtosis: 3,
  spread: 2,
});

test("layers in order, the head last; transforms that change nothing are left out and told", () => {
  const rows = ["none", "smooth", "rotate"].flatMap((transform, at) => [
    row("", "lm_head", transform, 5),
    row("layers.10", "in_proj", transform, 4),
    row("layers.2", "in_proj", transform, 4 - at),
  ]);
  expect(outlierTable(rows).split("\n")).toEqual([
    "activations  in front of  transform  largest  median channel  outliers  kurtosis  spread",
    "layers.2     in_proj      none       4.00     1.00            0 of 8    3.0       2.00",
    "layers.2     in_proj      smooth     3.00     1.00            0 of 8    3.0       2.00",
    "layers.2     in_proj      rotate     2.00     1.00            0 of 8    3.0       2.00",
    "layers.10    in_proj      none       4.00     1.00            0 of 8    3.0       2.00",
    "head         lm_head      none       5.00     1.00            0 of 8    3.0       2.00",
    "",
    "Transforms that change nothing there are left out.",
    "",
  ]);
  expect(outlierTable(rows.filter(({ layer }) => layer === "layers.2"))).not.toContain("left out");
});
