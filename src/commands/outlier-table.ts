/** Outlier channels before and after transforms, for people. */

import type { OutlierRow } from "../outliers.js";
import { formatTable } from "./text-table.js";

/** Rows of a transform that leaves an activation as it is without any are left out; a document has them. */
export function outlierTable(rows: readonly OutlierRow[]): string {
  const [first] = rows;
  const plain = new Map(
    rows.filter(({ transform }) => transform === first?.transform).map((row) => [placeOf(row), figures(row).join()]),
  );
  const told = rows.filter(
    (row) => row.transform === first?.transform || plain.get(placeOf(row)) !== figures(row).join(),
  );
  const table = formatTable([
    ["activations", "in front of", "transform", "largest", "median channel", "outliers", "kurtosis", "spread"],
    ...told
      .toSorted(byPlace)
      .map((row) => [row.layer === "" ? "head" : row.layer, row.role, row.transform, ...figures(row)]),
  ]);
  return told.length === rows.length ? table : `${table}\nTransforms that change nothing there are left out.\n`;
}

function figures(row: OutlierRow): string[] {
  return [
    row.absMax.toPrecision(3),
    row.medianAbsMax.toPrecision(3),
    `${row.outlierChannels} of ${row.channels}`,
    row.kurtosis.toFixed(1),
    row.spread.toPrecision(3),
  ];
}

/** Layer, then projection, the head last; transforms stay in their order, as sorting is stable. */
function byPlace(a: OutlierRow, b: OutlierRow): number {
  const last = Number(a.layer === "") - Number(b.layer === "");
  return last === 0 ? placeOf(a).localeCompare(placeOf(b), "en", { numeric: true }) : last;
}

function placeOf({ layer, role }: OutlierRow): string {
  return `${layer} ${role}`;
}
