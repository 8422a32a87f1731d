/** Seeded random test data; the same label gives the same data everywhere. */

/** A small counter-based generator (splitmix32), seeded by hashing a label. */
export class Sampler {
  #state: number;

  constructor(label: string) {
    let hash = 0x811c9dc5;
    for (let i = 0; i < label.length; i++) hash = Math.imul(hash ^ label.charCodeAt(i), 0x01000193);
    this.#state = hash >>> 0;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
  }

  /** Integer in [0, bound). */
  integer(bound: number): number {
    return Math.floor(this.uniform() * bound);
  }

  /** Standard normal values. */
  normal(count: number): Float64Array {
    const out = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
      out[i] = radius * Math.cos(2 * Math.PI * this.uniform());
    }
    return out;
  }

  /**
   * Values for dt before softplus. With `extremes` some are far below zero and some above 20, so that clamps and the
   * linear branch of softplus are exercised; without, decays stay moderate, as over the many tokens of a chunk float32
   * sums of extreme ones would measure cancellation in the source, not its meaning.
   */
  timeSteps(count: number, extremes: boolean): Float64Array {
    const out = this.normal(count);
    if (!extremes) return out.map((value) => value - 1);
    for (let i = 0; i < count; i++) {
      const kind = this.uniform();
      if (kind < 0.1) out[i] = -4 - 8 * this.uniform();
      else if (kind > 0.97) out[i] = 18 + 6 * this.uniform();
    }
    return out;
  }
}
