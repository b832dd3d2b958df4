/**
 * WGSL text that kernels share: typed views of buffers and sums over lanes.
 *
 * @module
 */
import { type Dtype, unitSize } from "../dtype.ts";

/**
 * How a kernel looks at a buffer.
 *
 * - `scalar`: `x_at(i)` is one element as f32 (u32 buffers: the array itself),
 *   `x_put(i, v)` writes one (f32 only);
 * - `vec4`: `x_at(i)` are elements 4i … 4i+3, `x_put(i, v)` writes them, `x_of(v)` are
 *   those of an array element v;
 * - `span`: `x_span(e, left)` are elements e … e+3 of which `left` remain in the
 *   row (zeros after them), `x_store(e, left, v)` writes those that remain; `vec4`
 *   where the last dimension is a multiple of 4, else `scalar`;
 * - `unit`: 16 bytes as `vec4u`, `x_lo(v)` and `x_hi(v)` are their first and second
 *   four elements (a kernel that writes them packs them); `scalar` where the last
 *   dimension is not a multiple of `X_UNIT`;
 * - `texels`: the same from a texture, a copy of a tensor that changes no more:
 *   `x_unit(i)` is 16 bytes of it;
 * - `half`: `x_at(i)` are elements 4i … 4i+3 as vec4<f16> (f16 only, F16 1);
 * - `raw`: the array itself, of u32;
 * - `atomic`: the array itself, of atomic u32.
 */
export type View =
  | "scalar"
  | "vec4"
  | "span"
  | "unit"
  | "texels"
  | "half"
  | "raw"
  | "atomic";

/** The view that a tensor's last dimension allows. */
export function settleView(view: View, dtype: Dtype, last: number): View {
  if ((view === "unit" || view === "texels") && last % unitSize(dtype) !== 0) {
    return "scalar";
  }
  if (view === "span" && last % 4 === 0) return "vec4";
  return view;
}

/** Texels in a row of a texture: whole copies of rows begin at multiples of 256 bytes. */
export const TEXELS_WIDE = 256;

/** WGSL type of one array element under a view. */
export function elementType(view: View, dtype: Dtype): string {
  const wide = dtype === "f32" || dtype === "u32";
  if (view === "unit") return "vec4u";
  if (view === "half") return "vec4<f16>";
  if (view === "raw") return "u32";
  if (view === "atomic") return "atomic<u32>";
  if (view === "vec4") {
    return wide ? (dtype === "u32" ? "vec4u" : "vec4f") : "vec2u";
  }
  return dtype === "f32" ? "f32" : "u32";
}

/**
 * Accessor functions of buffer `x` under its settled view.
 *
 * @throws {Error} if it is writable and of a type that kernels cannot write.
 */
export function accessors(
  x: string,
  view: View,
  dtype: Dtype,
  writable: boolean,
): string {
  if ((dtype === "u32" && view !== "texels") || view === "raw") return "";
  const bf16 = dtype === "bf16";
  const whole = view === "vec4" || view === "unit";
  if (writable && (bf16 || dtype === "f16" && !whole)) {
    throw new Error(
      `Cannot write ${x} as ${dtype}: kernels write f32, or f16 in rows of whole vec4`,
    );
  }
  const pairs = (a: string, b: string) =>
    bf16
      ? `bitcast<vec4f>(vec4u(${a} << 16u, ${a} & 0xffff0000u, ${b} << 16u, ${b} & 0xffff0000u))`
      : `vec4f(unpack2x16float(${a}), unpack2x16float(${b}))`;
  if (view === "texels") {
    return `fn ${x}_unit(at: u32) -> vec4u { return textureLoad(${x}, vec2u(at % ${TEXELS_WIDE}u, at / ${TEXELS_WIDE}u), 0); }\n` +
      accessors(x, "unit", dtype, writable);
  }
  if (view === "unit") {
    return dtype === "f32"
      ? `fn ${x}_lo(bits: vec4u) -> vec4f { return bitcast<vec4f>(bits); }\n`
      : `fn ${x}_lo(bits: vec4u) -> vec4f { return ${
        pairs("bits.x", "bits.y")
      }; }\n` +
        `fn ${x}_hi(bits: vec4u) -> vec4f { return ${
          pairs("bits.z", "bits.w")
        }; }\n`;
  }
  if (view === "half") {
    return `fn ${x}_at(at: u32) -> vec4<f16> { return ${x}[at]; }\n`;
  }
  if (view === "vec4") {
    const of = dtype === "f32" ? "raw" : pairs("raw.x", "raw.y");
    const put = dtype === "f32"
      ? `${x}[at] = value;`
      : `${x}[at] = vec2u(pack2x16float(value.xy), pack2x16float(value.zw));`;
    const type = elementType(view, dtype);
    return `fn ${x}_of(raw: ${type}) -> vec4f { return ${of}; }\n` +
      `fn ${x}_at(at: u32) -> vec4f { return ${x}_of(${x}[at]); }\n` +
      `fn ${x}_span(begin: u32, left: u32) -> vec4f { if (left == 0u) { return vec4f(); } return ${x}_at(begin >> 2u); }\n` +
      (writable
        ? `fn ${x}_put(at: u32, value: vec4f) { ${put} }\n` +
          `fn ${x}_store(begin: u32, left: u32, value: vec4f) { if (left > 0u) { ${x}_put(begin >> 2u, value); } }\n`
        : "");
  }
  const at = dtype === "f32"
    ? `return ${x}[at];`
    : bf16
    ? `let p = ${x}[at >> 1u]; return bitcast<f32>(select(p << 16u, p & 0xffff0000u, (at & 1u) == 1u));`
    : `let p = unpack2x16float(${x}[at >> 1u]); return select(p.x, p.y, (at & 1u) == 1u);`;
  return `fn ${x}_at(at: u32) -> f32 { ${at} }\n` +
    `fn ${x}_span(begin: u32, left: u32) -> vec4f {
  var four = vec4f();
  if (left > 0u) { four.x = ${x}_at(begin); }
  if (left > 1u) { four.y = ${x}_at(begin + 1u); }
  if (left > 2u) { four.z = ${x}_at(begin + 2u); }
  if (left > 3u) { four.w = ${x}_at(begin + 3u); }
  return four;
}\n` +
    (writable && dtype === "f32"
      ? `fn ${x}_put(at: u32, value: f32) { ${x}[at] = value; }
fn ${x}_store(begin: u32, left: u32, value: vec4f) {
  if (left > 0u) { ${x}[begin] = value.x; }
  if (left > 1u) { ${x}[begin + 1u] = value.y; }
  if (left > 2u) { ${x}[begin + 2u] = value.z; }
  if (left > 3u) { ${x}[begin + 3u] = value.w; }
}\n`
      : "");
}

/** Below every score and finite: running maxima begin with it, and its exp is 0. */
export const LOW = -3e38;

/**
 * `lanes_sum(v, tid)` and `lanes_max(v, tid)`: over each LANES neighbouring
 * threads, the result in all of them. LANES = 2^LOG_LANES must not exceed the
 * smallest subgroup where SUBGROUPS is 1; without subgroups they go through
 * workgroup memory and have to be called in uniform control flow.
 */
export const LANES = /* wgsl */ `
@if SUBGROUPS {
fn lanes_sum(v: f32, tid: u32) -> f32 {
  var s = v;
  @unroll for (var b = 0; b < LOG_LANES; b++) { s += subgroupShuffleXor(s, 1u << b); }
  return s;
}
fn lanes_max(v: f32, tid: u32) -> f32 {
  var s = v;
  @unroll for (var b = 0; b < LOG_LANES; b++) { s = max(s, subgroupShuffleXor(s, 1u << b)); }
  return s;
}
} @else {
var<workgroup> lanes: array<f32, WORKGROUP>;
fn lanes_sum(v: f32, tid: u32) -> f32 {
  var s = v;
  @unroll for (var b = 0; b < LOG_LANES; b++) {
    lanes[tid] = s;
    workgroupBarrier();
    s += lanes[tid ^ (1u << b)];
    workgroupBarrier();
  }
  return s;
}
fn lanes_max(v: f32, tid: u32) -> f32 {
  var s = v;
  @unroll for (var b = 0; b < LOG_LANES; b++) {
    lanes[tid] = s;
    workgroupBarrier();
    s = max(s, lanes[tid ^ (1u << b)]);
    workgroupBarrier();
  }
  return s;
}
}
`;
