/**
 * The Mamba-1 recurrence from standard ops. A differs for every channel and state, so there is no matrix product to
 * gather tokens into: one token is one step, more are a Scan.
 */

import type { Body } from "./body.js";
import type { ScanSpec } from "./names.js";
import { type ScanValues, stateCodec } from "./state-codec.js";
import { stepSize } from "./step-size.js";

/** What a token brings: d and u = d x [B,L,E], B and C [B,L,G,N]. */
interface Drive {
  readonly d: string;
  readonly u: string;
  readonly B: string;
  readonly C: string;
}

/** Whole calls: past -> y [B,L,E] and present. */
export function mamba1Scan(body: Body, spec: ScanSpec, inputs: ScanValues): { y: string; present: string } {
  const heads = body.div(body.size("channels"), body.size("head_dim"));
  const codec = stateCodec(spec, heads);
  const d = stepSize(body, inputs.dt, inputs.bias);
  const B = codec.order(body, inputs.B, 4);
  const C = codec.order(body, inputs.C, 4);
  const drive: Drive = { d, u: body.mul(inputs.x, d), B, C };
  const A = codec.order(body, inputs.A, 2);
  const skip = body.mul(inputs.x, inputs.D);
  const parts = codec.load(body, inputs.past);
  if (spec.requantize === "token") {
    const tokens = [drive.d, drive.u, B, C].map((value, index) => body.tokenMajor(value, index < 2 ? 3 : 4));
    const scan = body.scan(parts, tokens, (token, states, [dt = "", u = "", b = "", c = ""]) => {
      const step = rowStep(token, heads, A, codec.decayed(token, states, null), { d: dt, u, B: b, C: c });
      return { states: codec.round(token, step.state), outputs: [step.y] };
    });
    const y = body.op("Squeeze", [body.transpose(scan.outputs[0] ?? "", 1, 0, 2, 3), body.ints(2)]);
    return { y: body.add(y, skip), present: codec.store(body, scan.states) };
  }
  const single = body.op("Equal", [body.shapeOf(inputs.x, 1, 2), body.ints(1)]);
  const [y = "", ...next] = body.branch(
    single,
    (then) => {
      const step = rowStep(then, heads, A, codec.decayed(then, parts, null), drive);
      return [step.y, ...codec.round(then, step.state)];
    },
    (otherwise) => {
      const result = columnScan(otherwise, heads, A, codec.decayed(otherwise, parts, null), drive);
      return [result.y, ...codec.round(otherwise, result.state)];
    },
  );
  return { y: body.add(y, skip), present: codec.store(body, next) };
}

/**
 * One token: h [B,heads,P,N], drive with L = 1 -> y [B,1,E] without D x, and the state. Sizes of what has an axis L are
 * spelled out rather than inferred: a runtime infers shapes of this branch also where a graph fixes another L.
 */
function rowStep(body: Body, heads: string, A: string, h: string, drive: Drive): { y: string; state: string } {
  const [groups, dState, channels] = [body.size("num_groups"), body.size("d_state"), body.size("channels")];
  const perGroup = body.div(channels, groups);
  const decay = body.exp(body.mul(body.reshape(drive.d, 0, channels, 1), A)); // [B,E,N]
  const kept = body.mul(body.reshape(h, 0, -1, dState), decay);
  const fed = body.matmul(body.reshape(drive.u, 0, groups, perGroup, 1), body.reshape(drive.B, 0, groups, 1, dState));
  const next = body.add(body.reshape(kept, 0, groups, -1, dState), fed); // [B,G,E/G,N]
  const read = body.matmul(next, body.reshape(drive.C, 0, groups, dState, 1));
  return { y: body.reshape(read, 0, 1, -1), state: body.reshape(next, 0, heads, body.size("head_dim"), dState) };
}

/** All tokens, with the state as [B,G,N,E/G]: long rows make elementwise work cheap where N is small. */
function columnScan(body: Body, heads: string, A: string, h: string, drive: Drive): { y: string; state: string } {
  const [groups, dState, headDim] = [body.size("num_groups"), body.size("d_state"), body.size("head_dim")];
  const rates = body.transpose(body.reshape(A, groups, -1, dState), 0, 2, 1); // [G,N,E/G]
  const rows = (value: string): string => body.transpose(body.reshape(value, 0, 0, groups, 1, -1), 1, 0, 2, 3, 4); // [L,B,G,1,E/G]
  const columns = (value: string): string => body.transpose(body.unsqueeze(value, -1), 1, 0, 2, 3, 4); // [L,B,G,N,1]
  const scan = body.scan(
    [body.transpose(body.reshape(h, 0, groups, -1, dState), 0, 1, 3, 2)],
    [rows(drive.d), rows(drive.u), columns(drive.B), body.transpose(body.unsqueeze(drive.C, 3), 1, 0, 2, 3, 4)],
    (token, [state = ""], [d = "", u = "", B = "", C = ""]) => {
      const kept = token.mul(state, token.exp(token.mul(d, rates)));
      const next = token.add(kept, token.matmul(B, u));
      return { states: [next], outputs: [token.matmul(C, next)] };
    },
  );
  const stacked = body.reshape(scan.outputs[0] ?? "", 0, 0, -1); // [L,B,E]
  const state = body.transpose(scan.states[0] ?? "", 0, 1, 3, 2);
  return { y: body.transpose(stacked, 1, 0, 2), state: body.reshape(state, 0, heads, headDim, dState) };
}
