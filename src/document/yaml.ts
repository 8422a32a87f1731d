/** YAML 1.2 (so JSON too) in and out. Anchors, aliases and tags are refused: a recipe says everything in its place. */

import { Document, isAlias, isMap, isScalar, isSeq, LineCounter, type Node, parseDocument, visit } from "yaml";
import type { Located, LocatedEntry, Place, Plain, Problem } from "./located.js";

const LINE_WIDTH = 110;

/** One document, or the problems that keep it from being one. */
export function parseYaml(text: string): { readonly root: Located | null; readonly problems: readonly Problem[] } {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, stringKeys: true });
  const placeOf = (offset: number): Place => {
    const { line, col } = lines.linePos(offset);
    return { line: Math.max(1, line), column: Math.max(1, col) };
  };
  const problems: Problem[] = [...document.errors, ...document.warnings].map(({ message, pos }) => ({
    at: placeOf(pos[0]),
    message: `it is not YAML: ${message.replace(/\.?\s*$/, "")}`,
  }));
  if (problems.length > 0) return { root: null, problems };
  const root = located(document.contents, placeOf, problems);
  return problems.length > 0 ? { root: null, problems } : { root, problems };
}

function located(node: Node | null, placeOf: (offset: number) => Place, problems: Problem[]): Located {
  const at = placeOf(node?.range?.[0] ?? 0);
  if (node === null) return { kind: "scalar", value: null, at };
  if (isAlias(node)) {
    problems.push({ at, message: `the alias *${node.source} is not followed here; write out what it stands for` });
    return { kind: "scalar", value: null, at };
  }
  if (node.tag !== undefined && !node.tag.startsWith("tag:yaml.org,2002:")) {
    problems.push({ at, message: `the tag ${node.tag} means nothing here; leave it out` });
  }
  if (isMap<Node, Node | null>(node)) {
    const entries = node.items.map(
      ({ key, value }): LocatedEntry => ({
        key: isScalar(key) ? String(key.value) : "",
        keyAt: placeOf(key.range?.[0] ?? 0),
        // A key without a value stands for null, at the key.
        value:
          value === null
            ? { kind: "scalar", value: null, at: placeOf(key.range?.[0] ?? 0) }
            : located(value, placeOf, problems),
      }),
    );
    return { kind: "map", entries, at };
  }
  if (isSeq<Node | null>(node)) {
    return { kind: "list", items: node.items.map((item) => located(item, placeOf, problems)), at };
  }
  const value = isScalar(node) ? node.value : null;
  if (value === null || typeof value === "string" || typeof value === "number" || typeof value === "boolean") {
    return { kind: "scalar", value, at };
  }
  problems.push({ at, message: `a value of this kind (${typeof value}) has no use here` });
  return { kind: "scalar", value: null, at };
}

/** Block style, lists of plain values on one line; `comment` goes on top. Equal values give equal texts. */
export function formatYaml(value: Plain, comment: string | null = null): string {
  const document = new Document(value, { aliasDuplicateObjects: false });
  visit(document, {
    Seq: (_key, node) => {
      node.flow = node.items.every(isScalar);
    },
  });
  if (comment !== null) document.commentBefore = comment.replaceAll(/^(?=.)/gm, " ");
  return document.toString({ lineWidth: LINE_WIDTH, flowCollectionPadding: false });
}
