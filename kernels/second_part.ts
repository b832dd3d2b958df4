/**
 * A second part of a matrix, in another format, in one dispatch with the first one: code that
 * reads it, and what it costs. Kernels bind it as `v`, of `nv` rows.
 *
 * @module
 */
import type { Cost, CostCall } from "./cost.ts";

/**
 * Code as for the second part: functions of `w` become those of `v`, and `names` of what
 * depends on the format get the prefix `V_`.
 */
export const ofSecond = (
  code: string,
  names: readonly string[] = [],
): string =>
  names.reduce(
    (text, name) =>
      text.replaceAll(new RegExp(`\\b${name}\\b`, "g"), `V_${name}`),
    code
      .replaceAll(/\bw_(?=[a-zA-Z])/g, "v_")
      .replaceAll(/\bu\.n\b/g, "u.nv"),
  );

/** Costs of a dispatch, with those of a second part if it has one. */
export function withSecond(call: CostCall, costs: readonly Cost[]): Cost[] {
  const { m, n, k, constants, dispatch: { dims: { nv = 0 } } } = call;
  if (!constants.TWO) return [...costs];
  const [w, v] = [call.dtype("w"), call.dtype("v")];
  return costs.map((cost) => ({
    ...cost,
    shape: `[${m}, ${k}] × [${k}, ${n + nv}]`,
    dtypes: cost.dtypes.replace(`× ${w} →`, `× ${w}, ${v} →`),
    flops: cost.flops + 2 * m * nv * k,
    bytes: cost.bytes + nv * k * call.size("v") + 4 * m * nv,
  }));
}
