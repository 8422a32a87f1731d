/**
 * The rotation that runs in every call, as a semantic operator: `HadamardRotation` (x) -> (x R) in domain `mambac.ir`, R the
 * Hadamard matrix without signs that `hadamardRotation` gives for the last axis. Lowering makes one operator of it, or
 * products with small matrices.
 */

import type { GraphBuilder } from "../ir/builder.js";
import { attr, attrInt, makeNode, type Node } from "../ir/graph.js";
import { f32Tensor } from "../ir/tensor.js";
import { type HadamardRotation, hadamardRotation } from "../linalg/hadamard.js";
import { MAX_ROTATION_ORDER } from "../ops/names.js";
import { hadamardNode } from "../ops/nodes.js";
import { invariant } from "../support/errors.js";
import { emitRotation } from "./rotation.js";
import { SEMANTIC_DOMAIN } from "./semantic.js";

const OP = "HadamardRotation";

/** A rotation of the last axis of x, which has `rank` axes. */
export function onlineRotation(builder: GraphBuilder, x: string, rotation: HadamardRotation, rank: number): string {
  invariant(rotation.signs === null, "onlineRotation: a rotation with signs");
  const output = builder.fresh("rotated");
  const attributes = new Map([
    ["size", attr.int(rotation.size)],
    ["rank", attr.int(rank)],
  ]);
  builder.nodes.push(makeNode(OP, [x], [output], attributes, { domain: SEMANTIC_DOMAIN }));
  return output;
}

/** Is this node an online rotation? */
export function isOnlineRotation(node: Node): boolean {
  return node.domain === SEMANTIC_DOMAIN && node.op === OP;
}

/** Writes the rotation as one operator; true when it did, false where its factor is too large and products stand for it. */
export function lowerRotation(builder: GraphBuilder, node: Node, asOperator: boolean): boolean {
  const [x = ""] = node.inputs;
  const [output = ""] = node.outputs;
  const rotation = hadamardRotation(attrInt(node, "size", 0));
  const { size, factor, power } = rotation;
  const { order } = factor;
  if (!asOperator || order > MAX_ROTATION_ORDER) {
    emitRotation(builder, x, rotation, [], attrInt(node, "rank", 0) - 1, output);
    return false;
  }
  const matrix = builder.initializer(f32Tensor([order, order], Float32Array.from(factor.signs)), `hadamard${order}`);
  builder.nodes.push(hadamardNode({ size, order, power }, [x, matrix], output, node.name));
  return true;
}
