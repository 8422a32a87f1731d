/**
 * Hadamard matrices (entries +-1, H Hᵀ = n I) built from finite fields.
 *
 * Sources: R. Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933), both constructions; J. Sylvester (1867) for
 * the Kronecker product. Below 200 they miss the orders 92, 116, 156, 172, 184 and 188.
 */

import { invariant } from "../support/errors.js";

/** Row-major [order, order], entries +-1. */
export interface SignMatrix {
  readonly order: number;
  readonly signs: Int8Array;
}

const cache = new Map<number, SignMatrix | null>();

/** A Hadamard matrix of this order, or null when none of the constructions gives one. Always the same for an order. */
export function hadamardMatrix(order: number): SignMatrix | null {
  invariant(Number.isSafeInteger(order) && order >= 1, `Hadamard order ${order}`);
  let result = cache.get(order);
  if (result === undefined) {
    result =
      order <= 2 ? sylvester(order) : order % 4 === 0 ? (paleyOne(order) ?? paleyTwo(order) ?? product(order)) : null;
    cache.set(order, result);
  }
  return result;
}

function sylvester(order: number): SignMatrix {
  return { order, signs: Int8Array.from(order === 1 ? [1] : [1, 1, 1, -1]) };
}

/** H = I + S with a skew conference matrix S, where order - 1 is a prime power and 3 mod 4. */
function paleyOne(order: number): SignMatrix | null {
  const q = order - 1;
  const character = q % 4 === 3 ? quadraticCharacter(q) : null;
  if (character === null) return null;
  const signs = new Int8Array(order * order);
  signs.fill(1, 0, order);
  for (let i = 1; i < order; i++) {
    signs[i * order] = -1;
    for (let j = 1; j < order; j++) signs[i * order + j] = i === j ? 1 : character(i - 1, j - 1);
  }
  return { order, signs };
}

/** C x [[1,1],[1,-1]] + I x [[1,-1],[-1,-1]] with a symmetric conference matrix C; order/2 - 1 is 1 mod 4. */
function paleyTwo(order: number): SignMatrix | null {
  const half = order / 2;
  const q = half - 1;
  const character = q % 4 === 1 ? quadraticCharacter(q) : null;
  if (character === null) return null;
  const signs = new Int8Array(order * order);
  for (let i = 0; i < half; i++) {
    for (let j = 0; j < half; j++) {
      const entry = i === 0 || j === 0 ? 1 : character(i - 1, j - 1);
      const [a, b, c, d] = i === j ? [1, -1, -1, -1] : [entry, entry, entry, -entry];
      const at = 2 * i * order + 2 * j;
      signs[at] = a;
      signs[at + 1] = b;
      signs[at + order] = c;
      signs[at + order + 1] = d;
    }
  }
  return { order, signs };
}

/** Kronecker product of two smaller ones. */
function product(order: number): SignMatrix | null {
  for (let left = 2; left * left <= order; left++) {
    if (order % left !== 0) continue;
    const [a, b] = [hadamardMatrix(left), hadamardMatrix(order / left)];
    if (a === null || b === null) continue;
    const signs = new Int8Array(order * order);
    for (let i = 0; i < order; i++) {
      for (let j = 0; j < order; j++) {
        const outer = a.signs[Math.floor(i / b.order) * a.order + Math.floor(j / b.order)]!;
        signs[i * order + j] = outer * b.signs[(i % b.order) * b.order + (j % b.order)]!;
      }
    }
    return { order, signs };
  }
  return null;
}

/** (a, b) -> chi(a - b) over the field of q elements; null unless q is p, p^2 or p^3 with an odd prime p. */
function quadraticCharacter(q: number): ((a: number, b: number) => number) | null {
  const field = fieldOf(q);
  if (field === null) return null;
  const { p, degree, lower } = field;
  const square = new Uint8Array(q);
  for (let a = 1; a < q; a++) square[multiply(a, a, p, degree, lower)] = 1;
  return (a, b) => {
    let [difference, scale] = [0, 1];
    for (let [x, y] = [a, b]; x > 0 || y > 0; [x, y] = [Math.floor(x / p), Math.floor(y / p)]) {
      difference += modulo(x - y, p) * scale;
      scale *= p;
    }
    return difference === 0 ? 0 : square[difference] === 1 ? 1 : -1;
  };
}

function modulo(value: number, p: number): number {
  return ((value % p) + p) % p;
}

/** A field of q elements: polynomials below x^degree over the integers mod p, modulo x^degree + lower. */
function fieldOf(q: number): { p: number; degree: number; lower: number[] } | null {
  let p = 3;
  while (p * p <= q && q % p !== 0) p += 2;
  if (q % p !== 0) p = q;
  const degree = [1, 2, 3].find((exponent) => p ** exponent === q);
  if (p < 3 || p % 2 === 0 || degree === undefined || !isPrime(p)) return null;
  if (degree === 1) return { p, degree, lower: [0] };
  // A polynomial of degree 2 or 3 without a root is irreducible.
  for (let code = 1; code < q; code++) {
    const lower = digits(code, p, degree);
    const hasRoot = Array.from({ length: p }, (_, x) => x).some(
      (x) =>
        modulo(x ** degree + lower.reduce((sum, coefficient, power) => sum + coefficient * x ** power, 0), p) === 0,
    );
    if (!hasRoot) return { p, degree, lower };
  }
  return null;
}

function isPrime(p: number): boolean {
  for (let d = 2; d * d <= p; d++) if (p % d === 0) return false;
  return p >= 2;
}

function digits(code: number, p: number, count: number): number[] {
  return Array.from({ length: count }, (_, power) => Math.floor(code / p ** power) % p);
}

function multiply(a: number, b: number, p: number, degree: number, lower: readonly number[]): number {
  const [x, y] = [digits(a, p, degree), digits(b, p, degree)];
  const full: number[] = Array.from({ length: 2 * degree - 1 }, () => 0);
  for (let i = 0; i < degree; i++) for (let j = 0; j < degree; j++) full[i + j]! += x[i]! * y[j]!;
  for (let power = 2 * degree - 2; power >= degree; power--) {
    const coefficient = modulo(full[power]!, p);
    for (let k = 0; k < degree; k++) full[power - degree + k]! -= coefficient * lower[k]!;
  }
  return full.slice(0, degree).reduce((sum, coefficient, power) => sum + modulo(coefficient, p) * p ** power, 0);
}
