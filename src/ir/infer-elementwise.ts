/** Elementwise operators: one operand, two operands with numpy broadcasting, variadic, and Where. */

import { attrFloat, attrInt, attrString, type Node } from "./graph.js";
import { broadcastContent, broadcastShapes, castContent, isWholeNumber, storeAs } from "./infer-content.js";
import {
  at,
  type Call,
  contentInput,
  dtypeFact,
  type Fact,
  hasInput,
  type Rule,
  scalarOf,
  type TensorFact,
  tensorFact,
  tensorInput,
} from "./infer-fact.js";
import { roundHalfEven } from "./tensor.js";
import { type DType, dtypeFromNumber } from "./types.js";

/** One element; `whole` says that the operands are integers. NaN from integers means "cannot be told". */
type Unary = (x: number, whole: boolean) => number;
type Binary = (a: number, b: number, whole: boolean) => number;

const unknowable: Unary = () => Number.NaN;

/** Integer results count only where doubles are exact; beyond, a saturated operand would give a wrong answer. */
function exact(f: Binary): Binary {
  return (a, b, whole) => {
    const result = f(a, b, whole);
    if (!whole) return result;
    return Number.isSafeInteger(a) && Number.isSafeInteger(b) && Number.isSafeInteger(result) ? result : Number.NaN;
  };
}

const UNARY: Readonly<Record<string, Unary | null>> = {
  Abs: Math.abs,
  Acos: Math.acos,
  Acosh: Math.acosh,
  Asin: Math.asin,
  Asinh: Math.asinh,
  Atan: Math.atan,
  Atanh: Math.atanh,
  Ceil: Math.ceil,
  Cos: Math.cos,
  Cosh: Math.cosh,
  Exp: Math.exp,
  Floor: Math.floor,
  Log: Math.log,
  Neg: exactUnary((x) => -x),
  Reciprocal: (x) => 1 / x,
  Relu: (x) => (x < 0 ? 0 : x),
  Round: roundHalfEven,
  Sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  Sign: Math.sign,
  Sin: Math.sin,
  Sinh: Math.sinh,
  Softplus: (x) => (x > 0 ? x + Math.log1p(Math.exp(-x)) : Math.log1p(Math.exp(x))),
  Softsign: (x) => x / (1 + Math.abs(x)),
  Sqrt: Math.sqrt,
  Tan: Math.tan,
  Tanh: Math.tanh,
  // Shape only: their parameters matter to no shape arithmetic.
  BitwiseNot: exactUnary((x) => -1 - x),
  Celu: null,
  Elu: null,
  Erf: null,
  Gelu: null,
  HardSigmoid: null,
  HardSwish: null,
  LeakyRelu: null,
  Mish: null,
  Selu: null,
  Shrink: null,
  Swish: null,
  ThresholdedRelu: null,
};

function exactUnary(f: (x: number) => number): Unary {
  return (x, whole) => (whole && !Number.isSafeInteger(x) ? Number.NaN : f(x));
}

function unaryRule(f: Unary | null): Rule {
  return (call) => {
    const x = tensorInput(call, 0);
    return [tensorFact(x.dtype, x.shape, evaluateUnary(f ?? unknowable, f === null ? null : x, x.dtype))];
  };
}

function evaluateUnary(f: Unary, x: TensorFact | null, dtype: DType | null): readonly number[] | null {
  if (x === null || x.content === null || x.dtype === null) return null;
  const whole = isWholeNumber(x.dtype);
  return storeAs(
    dtype,
    x.content.map((value) => f(value, whole)),
  );
}

/** Operators from anything to bool, elementwise. */
function predicateRule(f: (x: number, node: Node) => boolean): Rule {
  return (call) => {
    const x = tensorInput(call, 0);
    return [tensorFact("bool", x.shape, x.content?.map((value) => Number(f(value, call.node))) ?? null)];
  };
}

function isInfinite(x: number, node: Node): boolean {
  if (x === Number.POSITIVE_INFINITY) return attrInt(node, "detect_positive", 1) !== 0;
  return x === Number.NEGATIVE_INFINITY && attrInt(node, "detect_negative", 1) !== 0;
}

const ARITHMETIC: Readonly<Record<string, Binary>> = {
  Add: exact((a, b) => a + b),
  Sub: exact((a, b) => a - b),
  Mul: exact((a, b) => a * b),
  Div: exact((a, b, whole) => (whole ? Math.trunc(a / b) : a / b)),
  Pow: exact((a, b, whole) => (whole ? Math.trunc(a ** b) : a ** b)),
  BitwiseAnd: bitwise((a, b) => a & b),
  BitwiseOr: bitwise((a, b) => a | b),
  BitwiseXor: bitwise((a, b) => a ^ b),
};

const VARIADIC: Readonly<Record<string, Binary | null>> = {
  Max: (a, b) => Math.max(a, b),
  Min: (a, b) => Math.min(a, b),
  Sum: exact((a, b) => a + b),
  Mean: null,
};

const COMPARE: Readonly<Record<string, (a: number, b: number) => boolean>> = {
  Equal: (a, b) => a === b,
  Greater: (a, b) => a > b,
  GreaterOrEqual: (a, b) => a >= b,
  Less: (a, b) => a < b,
  LessOrEqual: (a, b) => a <= b,
  And: (a, b) => a !== 0 && b !== 0,
  Or: (a, b) => a !== 0 || b !== 0,
  Xor: (a, b) => (a !== 0) !== (b !== 0),
};

function bitwise(f: (a: bigint, b: bigint) => bigint): Binary {
  return exact((a, b) => {
    if (!Number.isSafeInteger(a) || !Number.isSafeInteger(b)) return Number.NaN;
    return Number(f(BigInt(a), BigInt(b)));
  });
}

/** Remainder with the divisor's sign; integers only, `fmod=1` takes the dividend's. */
function modulo(a: number, b: number): number {
  const rest = a % b;
  return rest !== 0 && rest < 0 !== b < 0 ? rest + b : rest;
}

/** Before opset 7 the second operand was stretched to the first by attributes. */
function combinedShape(call: Call, shapes: readonly (readonly number[])[]): readonly number[] {
  const [first] = shapes;
  return call.opset < 7 && first !== undefined ? first : broadcastShapes(shapes);
}

function combine(
  call: Call,
  facts: readonly TensorFact[],
  outType: DType | null,
  f: ((values: readonly number[], whole: boolean) => number) | null,
): TensorFact {
  const shapes: (readonly number[])[] = [];
  for (const fact of facts) if (fact.shape !== null) shapes.push(fact.shape);
  const shape = combinedShape(call, shapes);
  if (shapes.length < facts.length) return dtypeFact(outType);
  const dtype = facts[0]?.dtype ?? null;
  if (f === null || dtype === null || call.opset < 7) return tensorFact(outType, shape);
  const columns: (readonly number[])[] = [];
  for (const fact of facts) {
    const column = broadcastContent(fact, shape);
    if (column === null) return tensorFact(outType, shape);
    columns.push(column);
  }
  const whole = isWholeNumber(dtype);
  const values = columns[0]?.map((_, i) =>
    f(
      columns.map((column) => at(column, i)),
      whole,
    ),
  );
  return tensorFact(outType, shape, storeAs(outType, values ?? null));
}

function operands(call: Call, count: number): TensorFact[] {
  return Array.from({ length: count }, (_, index) => tensorInput(call, index));
}

function commonType(facts: readonly TensorFact[]): DType | null {
  return facts.find((fact) => fact.dtype !== null)?.dtype ?? null;
}

function arithmeticRule(f: Binary): Rule {
  return (call) => {
    const [a, b] = [tensorInput(call, 0), tensorInput(call, 1)];
    // Pow takes the type of its base; everywhere else both operands have one type.
    const dtype = call.node.op === "Pow" ? a.dtype : (a.dtype ?? b.dtype);
    return [combine(call, [a, b], dtype, ([x = 0, y = 0], whole) => f(x, y, whole))];
  };
}

const mod: Rule = (call) => {
  const truncated = attrInt(call.node, "fmod", 0) !== 0;
  return arithmeticRule(exact((a, b) => (truncated ? a % b : modulo(a, b))))(call);
};

const bitShift: Rule = (call) => {
  const left = attrString(call.node, "direction", "") === "LEFT";
  return arithmeticRule(exact((a, b) => (left ? a * 2 ** b : Math.floor(a / 2 ** b))))(call);
};

function compareRule(f: (a: number, b: number) => boolean): Rule {
  return (call) => [
    combine(call, operands(call, 2), "bool", ([a = 0, b = 0], whole) => {
      // Two different 64-bit integers beyond 2^53 may read the same.
      if (whole && a === b && !Number.isSafeInteger(a)) return Number.NaN;
      return Number(f(a, b));
    }),
  ];
}

function variadicRule(f: Binary | null): Rule {
  return (call) => {
    const facts = operands(call, call.inputs.length);
    const fold =
      f === null ? null : (values: readonly number[], whole: boolean) => values.reduce((a, b) => f(a, b, whole));
    return [combine(call, facts, commonType(facts), fold)];
  };
}

const where: Rule = (call) => {
  const facts = operands(call, 3);
  const dtype = commonType(facts.slice(1));
  const shapes = facts.flatMap((fact) => (fact.shape === null ? [] : [fact.shape]));
  const shape = broadcastShapes(shapes);
  if (shapes.length < 3) return [dtypeFact(dtype)];
  const [condition, whenTrue, whenFalse] = facts.map((fact) => broadcastContent(fact, shape));
  if (!condition) return [tensorFact(dtype, shape)];
  const values: number[] = [];
  for (const [i, flag] of condition.entries()) {
    const value = flag !== 0 ? whenTrue?.[i] : whenFalse?.[i];
    if (value === undefined) return [tensorFact(dtype, shape)];
    values.push(value);
  }
  return [tensorFact(dtype, shape, values)];
};

const clip: Rule = (call) => {
  const x = tensorInput(call, 0);
  const low = clipBound(call, 1, "min", Number.NEGATIVE_INFINITY);
  const high = clipBound(call, 2, "max", Number.POSITIVE_INFINITY);
  if (low === null || high === null) return [tensorFact(x.dtype, x.shape)];
  const clipped = x.content?.map((value) => Math.min(high, Math.max(low, value))) ?? null;
  return [tensorFact(x.dtype, x.shape, storeAs(x.dtype, clipped))];
};

/** A Clip bound: an input since opset 11, an attribute before. */
function clipBound(call: Call, index: number, name: string, fallback: number): number | null {
  if (hasInput(call, index)) return scalarOf(contentInput(call, index));
  return attrFloat(call.node, name, fallback);
}

const cast: Rule = (call) => {
  const x = tensorInput(call, 0);
  const to = call.node.op === "CastLike" ? tensorInput(call, 1).dtype : dtypeFromNumber(attrInt(call.node, "to", 0));
  return [tensorFact(to, x.shape, castContent(x.dtype, to, x.content))];
};

/** Passes sequences and optionals through as well. */
const identity: Rule = (call): readonly Fact[] => {
  const fact = call.inputs[0];
  return fact === undefined || fact === null ? [] : [fact];
};

const sameAsFirst: Rule = (call) => {
  const x = tensorInput(call, 0);
  return [tensorFact(x.dtype, x.shape)];
};

const prelu: Rule = (call) => {
  const [x, slope] = [tensorInput(call, 0), tensorInput(call, 1)];
  if (x.shape !== null && slope.shape !== null) broadcastShapes([x.shape, slope.shape]);
  return [tensorFact(x.dtype, x.shape)];
};

const dropout: Rule = (call) => {
  const x = tensorInput(call, 0);
  return [x, tensorFact("bool", x.shape)];
};

const randomLike: Rule = (call) => {
  const x = tensorInput(call, 0);
  return [tensorFact(dtypeFromNumber(attrInt(call.node, "dtype", 0)) ?? x.dtype, x.shape)];
};

/** Every elementwise operator by qualified name. */
export const ELEMENTWISE_RULES: ReadonlyMap<string, Rule> = new Map<string, Rule>([
  ...Object.entries(UNARY).map(([op, f]): [string, Rule] => [op, unaryRule(f)]),
  ...Object.entries(ARITHMETIC).map(([op, f]): [string, Rule] => [op, arithmeticRule(f)]),
  ...Object.entries(COMPARE).map(([op, f]): [string, Rule] => [op, compareRule(f)]),
  ...Object.entries(VARIADIC).map(([op, f]): [string, Rule] => [op, variadicRule(f)]),
  ["Mod", mod],
  ["BitShift", bitShift],
  ["Not", predicateRule((x) => x === 0)],
  ["IsNaN", predicateRule((x) => Number.isNaN(x))],
  ["IsInf", predicateRule(isInfinite)],
  ["Where", where],
  ["Clip", clip],
  ["Cast", cast],
  ["CastLike", cast],
  ["Identity", identity],
  ["Optional", identity],
  ["OptionalGetElement", identity],
  ["PRelu", prelu],
  ["Dropout", dropout],
  ["RandomNormalLike", randomLike],
  ["RandomUniformLike", randomLike],
  ["Bernoulli", randomLike],
  ["com.microsoft.Gelu", sameAsFirst],
  ["com.microsoft.FastGelu", sameAsFirst],
  ["com.microsoft.QuickGelu", sameAsFirst],
  ["com.microsoft.BiasGelu", sameAsFirst],
]);
