/** Gives a projection another weight, and nothing else of it. */

import type { Tensor } from "../ir/tensor.js";
import type { GraphEdit } from "./edit.js";
import type { LinearSite } from "./sites.js";

/**
 * Puts `tensor` in the place of the site's weight, under the old name with a suffix; `input` is what it reads from now
 * on. Other inputs of the node (the bias of a Gemm) stay.
 */
export function reweight(
  edit: GraphEdit,
  site: LinearSite,
  suffix: string,
  tensor: Tensor,
  input: string = site.input,
): void {
  const name = edit.unused(`${site.weight}.${suffix}`);
  edit.addInitializers(new Map([[name, tensor]]));
  const inputs = site.weightSide === "right" ? [input, name] : [name, input];
  edit.swapNode(site.node, { ...site.node, inputs: [...inputs, ...site.node.inputs.slice(2)] });
}
