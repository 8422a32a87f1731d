/** Where things lie on disk: mambac's own root, ONNX Runtime's shared library, and the op library. */

import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { MambacError } from "../support/errors.js";

/** The folder of mambac's package.json: the same from sources and from `dist`. */
export function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, "package.json"))) {
    const parent = dirname(folder);
    if (parent === folder) throw new MambacError("install/root", "mambac's package.json is missing: reinstall mambac");
    folder = parent;
  }
  return folder;
}

const RUNTIME_NAME: Partial<Record<NodeJS.Platform, RegExp>> = {
  linux: /^libonnxruntime\.so(\.\d+)*$/,
  darwin: /^libonnxruntime(\.\d+)*\.dylib$/,
  win32: /^onnxruntime\.dll$/,
};

/**
 * The libonnxruntime that onnxruntime-node ships, so that both bindings share one copy in the process. The environment
 * variable MAMBAC_ONNXRUNTIME names another one. Throws `ort/not-found`.
 */
export function findOnnxRuntime(
  platform: NodeJS.Platform = process.platform,
  arch: string = process.arch,
  override: string | undefined = process.env["MAMBAC_ONNXRUNTIME"],
): string {
  if (override !== undefined && override !== "") {
    if (existsSync(override)) return resolve(override);
    throw new MambacError("ort/not-found", `MAMBAC_ONNXRUNTIME names ${override}, which does not exist`);
  }
  const bin = join(dirname(createRequire(import.meta.url).resolve("onnxruntime-node/package.json")), "bin");
  const pattern = RUNTIME_NAME[platform];
  const here = `${platform}/${arch}`;
  if (pattern !== undefined && existsSync(bin)) {
    for (const api of readdirSync(bin).sort().reverse()) {
      const folder = join(bin, api, platform, arch);
      if (!existsSync(folder)) continue;
      // The shortest name is the stable one: libonnxruntime.1.dylib before libonnxruntime.1.30.0.dylib.
      const [name] = readdirSync(folder)
        .filter((file) => pattern.test(file))
        .sort((a, b) => a.length - b.length);
      if (name !== undefined) return join(folder, name);
    }
  }
  throw new MambacError(
    "ort/not-found",
    `onnxruntime-node ships no ONNX Runtime library for ${here}; set MAMBAC_ONNXRUNTIME to a libonnxruntime 1.18 or newer`,
  );
}

/** `auto`: the environment, then the place the build puts it; `none`: do without; anything else is a path. */
export type LibraryChoice = "auto" | "none" | (string & {});

/** File name of the op library on a platform. */
export function opsLibraryName(platform: NodeJS.Platform = process.platform): string {
  if (platform === "win32") return "mambac_ops.dll";
  return platform === "darwin" ? "libmambac_ops.dylib" : "libmambac_ops.so";
}

/** Where the op library was found, or why there is none. */
export type OpsLibrary =
  | { readonly kind: "found"; readonly path: string }
  | { readonly kind: "absent"; readonly reason: string };

/**
 * Finds the op library. A path that was asked for by name (option or MAMBAC_OPS_LIBRARY) and does not exist is an
 * error, `ops/not-found`; a library that was never built is merely absent.
 */
export function findOpsLibrary(
  choice: LibraryChoice = "auto",
  environment: string | undefined = process.env["MAMBAC_OPS_LIBRARY"],
  root: string = packageRoot(),
): OpsLibrary {
  if (choice === "none") return { kind: "absent", reason: "switched off" };
  if (choice !== "auto") return named(choice, "the option 'library'");
  if (environment === "none") return { kind: "absent", reason: "switched off by MAMBAC_OPS_LIBRARY" };
  if (environment !== undefined && environment !== "") return named(environment, "MAMBAC_OPS_LIBRARY");
  const built = join(root, "build", "ops", opsLibraryName());
  if (existsSync(built)) return { kind: "found", path: built };
  return {
    kind: "absent",
    reason: `the op library is not built; mambac build-ops builds it (looked for ${built})`,
  };
}

function named(path: string, by: string): OpsLibrary {
  const absolute = resolve(path);
  if (existsSync(absolute)) return { kind: "found", path: absolute };
  throw new MambacError("ops/not-found", `${by} names ${path}, which does not exist`);
}
