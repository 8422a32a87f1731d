import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { documentIn, mambac, spawnMambac } from "../support/command.js";
import { compileDemo, done, scratch } from "../support/demo-packages.js";
import { DEMO } from "../support/state-quality.js";

const root = scratch();
afterAll(() => rmSync(root, { recursive: true }));

let external = "";
let inline = "";

beforeAll(async () => {
  external = await compileDemo(root, "h4", "--state", "h4", "--state-names", "genai");
  inline = await compileDemo(root, "f32", "--state", "f32", "--state-names", "genai", "--external-data", "never");
}, 60_000);

/** Every file under a folder with its bytes, hidden ones included. */
function contents(folder: string): Record<string, string> {
  const files = readdirSync(folder, { recursive: true, encoding: "utf8" }).sort();
  const plain = files.filter((name) => statSync(join(folder, name)).isFile());
  return Object.fromEntries(plain.map((name) => [name, readFileSync(join(folder, name), "latin1")]));
}

const NEW = ["genai_config.json", "model.onnx", "model.onnx.data"];

describe("a place for a package", () => {
  test("is made, with the rights of other folders, or was there and empty", async () => {
    const fresh = join(root, "new", "deep");
    await done("package", external, "--genai", fresh, "-q");
    mkdirSync(join(root, "plain"));
    expect(statSync(fresh).mode).toBe(statSync(join(root, "plain")).mode);
    await done("package", external, "--genai", join(root, "plain"), "-q");
    symlinkSync(join(root, "target"), join(root, "link"));
    mkdirSync(join(root, "target"));
    await done("package", external, "--genai", join(root, "link"), "-q");
    for (const folder of [fresh, join(root, "plain"), join(root, "target")]) {
      expect(readdirSync(folder).sort()).toEqual(NEW);
    }
    expect(contents(fresh)).toEqual(contents(join(root, "plain")));
  });

  test("that holds something is refused, and with --force keeps what is not of the package", async () => {
    const folder = join(root, "used");
    await done("package", external, "--genai", folder, "-q");
    writeFileSync(join(folder, "README.md"), "mine");
    const before = contents(folder);
    const refused = await mambac("package", inline, "--genai", folder);
    expect(refused).toMatchObject({ code: 2, out: "", err: expect.stringContaining("is not empty") });
    expect(contents(folder)).toEqual(before);
    await done("package", inline, "--genai", folder, "--force", "-q");
    // The new model is one file, so weights of the old one would belong to nothing.
    expect(readdirSync(folder).sort()).toEqual(["README.md", "genai_config.json", "model.onnx"]);
    expect(readFileSync(join(folder, "model.onnx")).equals(readFileSync(inline))).toBe(true);
    expect(readFileSync(join(folder, "README.md"), "utf8")).toBe("mine");
  });

  test("that is a file is refused", async () => {
    const file = join(root, "file");
    writeFileSync(file, "");
    for (const force of [[], ["--force"]]) {
      const result = await mambac("package", external, "--genai", file, ...force);
      expect(result).toMatchObject({ code: 2, err: expect.stringContaining("is a file; name a folder") });
    }
  });
});

describe("after a failure everything is as it was", () => {
  test("a folder where a file should go", async () => {
    const folder = join(root, "blocked");
    mkdirSync(join(folder, "genai_config.json"), { recursive: true });
    const result = await mambac("package", external, "--genai", folder, "--force");
    expect(result).toMatchObject({ code: 2, err: expect.stringContaining("is a folder, not a file of a package") });
    expect(readdirSync(folder)).toEqual(["genai_config.json"]);
  });

  test("one of two packages that cannot be", async () => {
    const folder = join(root, "half", "genai");
    const result = await mambac("package", external, "--genai", folder, "--hf", join(root, "half", "hf"));
    expect(result).toMatchObject({ code: 4, err: expect.stringContaining("layout of the Hub") });
    expect(existsSync(join(root, "half"))).toBe(false);
  });

  test.skipIf(process.platform === "win32")("a full disk", async () => {
    const folder = join(root, "full", "genai");
    const limit = { fileLimit: 512 * 1024 };
    const result = await spawnMambac(["package", external, "--genai", folder], limit);
    expect(result).toMatchObject({ code: 2, out: "", err: expect.stringContaining("larger than files may be") });
    expect(existsSync(join(root, "full"))).toBe(false);
    const used = join(root, "used-too");
    await done("package", inline, "--genai", used, "-q");
    const before = contents(used);
    expect(await spawnMambac(["package", external, "--genai", used, "--force"], limit)).toMatchObject({ code: 2 });
    expect(contents(used)).toEqual(before);
  });
});

describe("the command", () => {
  test("tells files and notes, for people and as a document", async () => {
    const folders = ["--triton", join(root, "t"), "--genai", join(root, "g")];
    const document = documentIn(await mambac("package", external, ...folders, "--json"));
    expect(document).toMatchObject({
      command: "package",
      model: external,
      packages: [
        { kind: "triton", folder: join(root, "t", "h4"), notes: [] },
        {
          kind: "genai",
          folder: join(root, "g"),
          notes: [expect.stringMatching(/eos_token_id/), expect.stringMatching(/tokenizer/)],
        },
      ],
    });
    const people = await mambac("package", external, ...folders, "--force");
    expect(people.out).toMatch(/^triton +.*1\/model\.onnx \(\d.*config\.pbtxt \(.*\ngenai +.*genai_config\.json/);
    expect(people.err).toMatch(/^note \(genai\): no eos_token_id/);
  });

  test("refuses what says nothing, is not compiled or has no library to ship", async () => {
    expect(await mambac("package", external)).toMatchObject({ code: 2, err: expect.stringContaining("--triton") });
    const source = await mambac("package", join(DEMO, "prefill.onnx"), "--triton", join(root, "s"));
    expect(source).toMatchObject({ code: 4, err: expect.stringContaining("was not compiled by mambac") });
    const folder = await mambac("package", external, "--triton", join(root, "s"), "--library", root);
    expect(folder).toMatchObject({ code: 2, err: expect.stringContaining("is not a file") });
    expect(existsSync(join(root, "s"))).toBe(false);
  });
});
