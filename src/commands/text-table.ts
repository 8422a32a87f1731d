/** Tables and amounts for people. */

/** Rows as aligned columns, the first row being the heading. Columns that are empty in every row disappear. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const width = Math.max(0, ...rows.map((row) => row.length));
  const columns = Array.from({ length: width }, (_, column) => column).filter((column) =>
    rows.slice(1).some((row) => (row[column] ?? "") !== ""),
  );
  const sizes = columns.map((column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  return rows
    .map((row) => columns.map((column, at) => (row[column] ?? "").padEnd(sizes[at] ?? 0)).join("  "))
    .map((line) => `${line.trimEnd()}\n`)
    .join("");
}

/** `label  value` lines with the values aligned. */
export function formatFacts(facts: readonly (readonly [label: string, value: string])[]): string {
  const width = Math.max(0, ...facts.map(([label]) => label.length));
  return facts.map(([label, value]) => `${label.padEnd(width)}  ${value}\n`).join("");
}

const UNITS = ["B", "kB", "MB", "GB", "TB"] as const;

/** Three digits and a decimal unit: `9.22 kB`, `2.85 MB`, `512 B`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit] ?? ""}`;
}

/** `65.5 kB -> 9.22 kB (7.1x)`, or one amount when nothing changes. */
export function formatChange(before: number, after: number): string {
  if (before === after) return formatBytes(after);
  return `${formatBytes(before)} -> ${formatBytes(after)} (${(before / after).toFixed(1)}x)`;
}

/** `6.9e-7`; a dash for what was not measured. */
export function formatError(error: number | null): string {
  if (error === null) return "-";
  return error === 0 ? "0" : error.toExponential(1);
}
