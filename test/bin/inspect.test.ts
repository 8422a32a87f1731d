import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-inspect-"));
afterAll(() => rmSync(root, { recursive: true }));

test("a source shows its layers with proofs, and the bytes of the state asked for", async () => {
  const plain = await mambac("inspect", fixture("hf/mamba"));
  expect(plain.code).toBe(0);
  expect(plain.out).toMatch(/layers\.1 +scan +mamba1 unrolled +\d\.\de-\d +E=\d+ N=\d+ G=1 /);
  expect(plain.out).toMatch(/prefill +.*prefill\.onnx \(\d+ kB\)\ndecode +.*decode\.onnx/);
  const packed = documentIn(await mambac("inspect", fixture("hf/mamba2"), "--json", "--state", "h4"));
  expect(packed).toMatchObject({
    command: "inspect",
    kind: "source",
    totals: { stateBytesBefore: 6656, stateBytesAfter: 3456 },
  });
});

test("a compiled file shows operators, states, and where it came from", async () => {
  const out = join(root, "out.onnx");
  expect((await mambac("compile", fixture("hf/mamba2"), "-o", out, "--state", "h4", "-q")).code).toBe(0);
  const human = await mambac("inspect", out);
  expect(human).toMatchObject({ code: 0, err: "" });
  expect(human.out).toMatch(
    /layers\.0 +scan +com\.mambac\.Mamba2ScanH4Max .* u8\[\w+,4,112\] +2\.05 kB -> 448 B \(4\.6x\)/,
  );
  const source = documentIn(await mambac("inspect", fixture("hf/mamba2"), "--json"));
  const hashes = (source["inputs"] as { readonly sha256: string }[]).map(({ sha256 }) => sha256).join(" ");
  expect(human.out).toContain(`source       sha256 ${hashes}`);
  expect(documentIn(await mambac("inspect", out, "--json"))).toMatchObject({
    kind: "compiled",
    metadata: { "mambac.state": "h4 dsq-max requantize=call" },
    totals: { stateBytesBefore: 6656, stateBytesAfter: 3456 },
  });
  expect(readdirSync(root)).toEqual(["out.onnx"]);
});

test("the operators of --scan linear-attention are shown with their states", async () => {
  const out = join(root, "la.onnx");
  const flags = ["--state", "f32", "--scan", "linear-attention", "-q"];
  expect((await mambac("compile", fixture("hf/mamba2"), "-o", out, ...flags)).code).toBe(0);
  const { out: text } = await mambac("inspect", out);
  expect(text).toMatch(/scan +com\.microsoft\.LinearAttention .*recurrent_states.*2\.05 kB/);
});
