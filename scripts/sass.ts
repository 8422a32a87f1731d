/** Machine code of CUDA kernels (sm_70 and newer), as far as it says how long loops are. No disassembler is needed. */

const BYTES = 16; // of one instruction
const BRANCH = 0x947n;

/**
 * Instructions of the longest loop of a kernel's code, its rare branches and inner loops included once; 0 where there is
 * none. Throws where branches are laid out in a way it does not know.
 */
export function longestLoop(code: Uint8Array): number {
  const view = new DataView(code.buffer, code.byteOffset, code.byteLength);
  const branches: { readonly low: bigint; readonly high: bigint }[] = [];
  for (let at = 0; at + BYTES <= code.byteLength; at += BYTES) {
    const low = view.getBigUint64(at, true);
    if ((low & 0xfffn) === BRANCH) branches.push({ low, high: view.getBigUint64(at + 8, true) });
  }
  // Behind its end every kernel has a branch to itself, which tells the layouts of old and new architectures apart.
  const last = branches.at(-1);
  const layout = [oldOffset, newOffset].find((offset) => last !== undefined && offset(last.low, last.high) === -BYTES);
  if (layout === undefined)
    throw new Error("branches of the machine code are laid out in a way this script does not know");
  const lengths = branches.map((b) => -layout(b.low, b.high) / BYTES).filter((length) => length > 1);
  return Math.max(0, ...lengths);
}

/** Bytes from behind a branch to its target: bits 34 to 81, in words of four bytes. */
function oldOffset(low: bigint, high: bigint): number {
  return Number(BigInt.asIntN(48, (low >> 34n) | (high << 30n)) * 4n);
}
/** The same since sm_90: the eight lowest bits lie at 16. */
function newOffset(low: bigint, high: bigint): number {
  return Number(
    BigInt.asIntN(56, (BigInt.asUintN(48, (low >> 34n) | (high << 30n)) << 8n) | ((low >> 16n) & 0xffn)) * 4n,
  );
}
