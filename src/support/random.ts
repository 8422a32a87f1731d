/**
 * A small seeded generator (SplitMix64), so that anything random in mambac repeats exactly.
 *
 * `split(label)` gives an independent generator that depends only on the seed and the label, never on how many numbers
 * were drawn before: adding a consumer does not change what the others see.
 * Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
 */

const MASK = (1n << 64n) - 1n;
const GOLDEN = 0x9e3779b97f4a7c15n;

export class Random {
  readonly #seed: bigint;
  #state: bigint;

  constructor(seed: number | bigint) {
    this.#seed = BigInt.asUintN(64, BigInt(seed));
    this.#state = this.#seed;
  }

  /** The next 64 random bits. */
  bits(): bigint {
    this.#state = (this.#state + GOLDEN) & MASK;
    return mix(this.#state);
  }

  /** Uniform in [0, 1), a multiple of 2^-53. */
  uniform(): number {
    return Number(this.bits() >> 11n) / 2 ** 53;
  }

  /** Uniform integer in [0, bound); bound is at most 2^53. */
  integer(bound: number): number {
    return Math.floor(this.uniform() * bound);
  }

  /** Standard normal (Box-Muller; two uniforms a number). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** An independent generator for `label`. */
  split(label: string): Random {
    let hash = this.#seed ^ GOLDEN;
    for (const byte of new TextEncoder().encode(label)) hash = mix(((hash ^ BigInt(byte)) * GOLDEN) & MASK);
    return new Random(mix(hash));
  }
}

function mix(value: bigint): bigint {
  let z = value;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}
