/**
 * A pass of one's own between those of mambac: node own-pass.js SOURCE.onnx OUT.onnx
 *
 *     prune-tiny    projections: weights below a share of the largest become zero
 */

import { applyPasses, compile, insertStep, loadPackage, MambacError, readModel } from "mambac";
import { definePass, f32Tensor, GraphEdit, passesFor, semanticOps, sitesOf, step, toNumbers } from "mambac/passes";

const pruneTiny = definePass<{ readonly share: number }>({
  name: "prune-tiny",
  summary: "set the smallest weights of projections to zero",
  exactness: "lossy",
  requires: ["states-complete"],
  establishes: [],
  invalidates: [],
  run(model, { share }, context) {
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const { node, weight, layer, role } of sitesOf(model).linears) {
      const tensor = model.graph.initializers.get(weight);
      if (tensor?.dtype !== "f32") {
        context.report({ kind: "missed", code: "prune-tiny/type", where: node.name, message: "its weight is not float32" });
        continue;
      }
      const values = toNumbers(tensor);
      const least = share * values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const kept = values.map((value) => (Math.abs(value) < least ? 0 : value));
      const zeros = kept.filter((value) => value === 0).length;
      const name = edit.unused(`${weight}.pruned`);
      edit.addInitializers(new Map([[name, f32Tensor(tensor.shape, kept)]]));
      edit.swapNode(node, { ...node, inputs: node.inputs.map((input) => (input === weight ? name : input)) });
      const where = layer === "" ? role : `${layer} ${role}`;
      context.report({ kind: "applied", code: "prune-tiny/zeros", where, message: `${zeros} of ${kept.length} are zero` });
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

const [source = "", out = ""] = process.argv.slice(2);
try {
  // Single passes on a graph of one's own: nothing but the recognition of scans, without writing anything.
  const { model } = readModel(source);
  const recognised = await applyPasses(model, passesFor({ state: { format: "f32", scale: "dsq", requantize: "call" } }).raise());
  for (const op of semanticOps(recognised.model.graph.nodes)) console.log(`${op.layer}: ${op.kind}`);

  // A whole compilation, with one pass more. Recipes and states are those of the command line.
  const report = await compile({
    inputs: source,
    output: out,
    recipe: "rtn-w4a16",
    state: "h8",
    passes: (usual) => insertStep(usual, { after: "complete-states" }, step(pruneTiny, { share: 0.01 })),
  });
  for (const { pass, where, message } of report.remarks) console.log(`${pass} ${where}: ${message}`);

  await using loaded = await loadPackage(out, { onNotice: console.error });
  const { data } = await loaded.prefill([73, 110, 32, 116, 104, 101]);
  console.log(`best next token: ${data.indexOf(Math.max(...data))}`);
} catch (cause) {
  if (!(cause instanceof MambacError)) throw cause;
  console.error(`${cause.code}: ${cause.message}`);
  process.exitCode = cause.exitCode;
}
