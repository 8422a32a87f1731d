/** Which of a model's mambac operators run as kernels of the op library, and which as functions of the model. */

import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Graph, type Model, subgraphs, useIndex } from "../ir/graph.js";
import { TemporaryFiles } from "../onnx/temporary-files.js";
import { OP_DOMAIN } from "../ops/names.js";
import type { NativeSession } from "./native-session.js";
import type { Signature } from "./signature.js";

/** Operator names of domain com.mambac with the number of their nodes in the model. */
export interface ExecutedOps {
  /** Ran as kernels of the registered library. */
  readonly kernels: ReadonlyMap<string, number>;
  /** Were inlined by ONNX Runtime: the portable path. */
  readonly functions: ReadonlyMap<string, number>;
}

/** How many nodes of each mambac operator a model holds, subgraphs included. */
export function countCustomOps(model: Model): Map<string, number> {
  const counts = new Map<string, number>();
  const visit = (graph: Graph): void => {
    for (const node of graph.nodes) {
      if (node.domain === OP_DOMAIN) counts.set(node.op, (counts.get(node.op) ?? 0) + 1);
      for (const inner of subgraphs(node)) visit(inner);
    }
  };
  visit(model.graph);
  return counts;
}

/** Splits a model's operators by whether a run had kernels of those names. */
export function splitByKernel(counts: ReadonlyMap<string, number>, ran: ReadonlySet<string>): ExecutedOps {
  const entries = [...counts];
  return {
    kernels: new Map(entries.filter(([op]) => ran.has(op))),
    functions: new Map(entries.filter(([op]) => !ran.has(op))),
  };
}

/**
 * State inputs that may share their buffer with their output: the kernel that writes the new state is the only reader
 * of the old one. A function would be inlined into several readers in an order nobody promises.
 */
export function inPlaceStates(model: Model, signature: Signature, ops: ExecutedOps): Set<string> {
  const { users, producer } = useIndex(model.graph);
  const safe = signature.states.filter(({ input, output }) => {
    const readers = users.get(input) ?? [];
    const [reader] = readers;
    return (
      readers.length === 1 &&
      reader !== undefined &&
      reader.domain === OP_DOMAIN &&
      ops.kernels.has(reader.op) &&
      producer.get(output) === reader
    );
  });
  return new Set(safe.map((pair) => pair.input));
}

/** Profiles one run of a session to see the operators that really execute, whatever was registered. */
export class ExecutionTrace {
  readonly #temporary = new TemporaryFiles();
  readonly #folder: string = this.#temporary.folder(tmpdir(), "mambac-trace-");

  /** To be given to the session as `profilePrefix`. */
  get prefix(): string {
    return join(this.#folder, "run");
  }

  /** Ends profiling after at least one run; gives the operator names seen. Later runs are not slowed down. */
  finish(session: NativeSession): Set<string> {
    return executedNames(readFileSync(session.endProfiling(), "utf8"));
  }

  close(): void {
    this.#temporary.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Operator names in a profile of ONNX Runtime: a list of trace events, those of nodes with `args.op_name`. */
function executedNames(profile: string): Set<string> {
  const events = JSON.parse(profile) as readonly { readonly args?: { readonly op_name?: string } }[];
  return new Set(events.flatMap((event) => event.args?.op_name ?? []));
}
