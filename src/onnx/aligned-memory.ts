/** Memory that starts on a page: what reading and writing past the page cache of the system needs. */

/** Places in files and lengths must be multiples of this likewise. */
export const SECTOR_BYTES = 4096;

/** What this file uses of the global `WebAssembly`, which `@types/node` leaves to the DOM's types. */
interface MemoryGlobal {
  readonly Memory: new (limits: {
    readonly initial: number;
    readonly maximum: number;
  }) => {
    readonly buffer: ArrayBuffer;
  };
}

const WASM_PAGE = 65536;

/**
 * At least `length` zero bytes, page-aligned where the host has WebAssembly, whose memories start on a page; memory from
 * anywhere else. What needs alignment must try, and do without where it fails.
 */
export function alignedMemory(length: number): Uint8Array {
  const wasm = (globalThis as { readonly WebAssembly?: MemoryGlobal }).WebAssembly;
  const pages = Math.ceil(length / WASM_PAGE);
  if (wasm !== undefined) {
    try {
      return new Uint8Array(new wasm.Memory({ initial: pages, maximum: pages }).buffer);
    } catch {
      // A module's memory takes much address space, which a process may have been denied.
    }
  }
  return new Uint8Array(length);
}
