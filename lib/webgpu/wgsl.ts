/**
 * WGSL shared by kernels: typed views of buffers, and sums over lanes.
 *
 * @module
 */
import type { Compiler } from "../dispatch/capabilities.ts";
import type { Constants } from "../dispatch/shapes.ts";
import { f16 } from "../formats/f16.ts";
import { f32 } from "../formats/f32.ts";
import {
  type Format,
  fourLoad,
  hasStrips,
  STRIP,
  wideLoad,
} from "../formats/format.ts";

/**
 * How a kernel accesses a buffer. Tensors of floats are read like weights in the format
 * of the same name: `x_load`, `x_four[i]` and `x_masked` come from lib/formats.
 *
 * - `scalar`: `x_at(i)` is one element as f32 (u32 buffers: the array itself),
 *   `x_put(i, v)` writes one (f32 only);
 * - `vec4`: loads of four elements; `x_at(i)` are elements 4i … 4i+3, `x_put(i, v)`
 *   writes them;
 * - `span`: `x_span(e, left)` are elements e … e+3, of which `left` remain in the
 *   row (zeros after them), `x_store(e, left, v)` writes those that remain; `vec4`
 *   where the last dimension is a multiple of 4, else `scalar`;
 * - `unit`: the widest loads, `X_UNIT` elements each; `scalar` where the last
 *   dimension is not a multiple of that; u32 buffers: the array itself, of vec4u;
 * - `strip`: for formats of blocks that have such loads, those of STRIP elements
 *   (lib/formats/format.ts), also in steps: `x_words` and `x_raw`; `span` for the others;
 * - `texels`: like `unit`, but from a texture that holds a copy of a buffer that no
 *   longer changes; u32 buffers: `x_unit(i)` is 16 bytes;
 * - `half`: like `vec4`, as vec4<f16> (f16 only, F16 1, read only);
 * - `raw`: the array itself, of u32;
 * - `quad`: the array itself, of vec4u, whatever the sizes (u32 buffers only);
 * - `atomic`: the array itself, of atomic u32.
 */
export type View =
  | "scalar"
  | "vec4"
  | "span"
  | "unit"
  | "strip"
  | "texels"
  | "half"
  | "raw"
  | "quad"
  | "atomic";

/** A buffer as a kernel declares it. */
export interface Viewed {
  /** The view as settled by {@linkcode settleView}. */
  readonly view: View;
  /** How its elements are stored; undefined for u32. */
  readonly format: Format | undefined;
  readonly writable: boolean;
}

/** Elements in a buffer's widest loads, or in those of the view. */
export const unitSize = (format: Format | undefined, view?: View): number =>
  view === "strip" ? STRIP : format?.loads[0] ?? 4;

/** Returns `view`, or the one that replaces it if the last dimension rules it out. */
export function settleView(
  view: View,
  format: Format | undefined,
  last: number,
): View {
  if (view === "unit" || view === "texels") {
    const whole = format
      ? wideLoad(format, last) === unitSize(format)
      : last % 4 === 0;
    return whole ? view : "scalar";
  }
  if (view === "strip" && format && hasStrips(format)) return view;
  if (view !== "span" && view !== "strip") return view;
  return (format ? fourLoad(format, last) : last % 4 ? 1 : 4) === 1
    ? "scalar"
    : "vec4";
}

/** Texels per texture row. Copies need rows of a multiple of 256 bytes. */
export const TEXELS_WIDE = 256;

const texel = (x: string) =>
  `textureLoad(${x}, vec2u(at % ${TEXELS_WIDE}u, at / ${TEXELS_WIDE}u), 0)`;

/** WGSL element types by binding, and the declarations of the access functions. */
export interface Accessors {
  readonly types: readonly string[];
  readonly code: readonly string[];
}

/**
 * Declares how buffer `x` is read and written. `bindings` are the names of its planes,
 * or just `x` if it has only one.
 *
 * @throws {Error} if it is writable, but kernels cannot write its type.
 */
export function accessors(
  x: string,
  bindings: readonly string[],
  { view, format, writable }: Viewed,
): Accessors {
  if (view === "raw") return { types: ["u32"], code: [] };
  if (view === "quad") return { types: ["vec4u"], code: [] };
  if (view === "atomic") return { types: ["atomic<u32>"], code: [] };
  if (format === undefined) return ofIntegers(x, view);
  const whole = view === "vec4" || view === "unit";
  if (writable && format !== f32 && !(format === f16 && whole)) {
    throw new Error(
      `Cannot write ${x} as ${format.name}: kernels write f32, or f16 in rows of whole vec4`,
    );
  }
  if (view === "half") {
    const code = [
      `fn ${x}_at(at: u32) -> vec4<f16> { return ${x}[at]; }`,
      `fn ${x}_span(begin: u32, left: u32) -> vec4<f16> { if (left == 0u) { return vec4<f16>(); } return ${x}_at(begin >> 2u); }`,
    ];
    return { types: ["vec4<f16>"], code };
  }
  const load = view === "scalar"
    ? 1
    : view === "vec4"
    ? 4
    : unitSize(format, view);
  const { types } = format.wgsl(x, load, () => "");
  const { code } = format.wgsl(x, load, (plane, at) => {
    if (view !== "texels") return `${bindings[plane]}[${at}]`;
    const bits = texel(bindings[plane]), type = types[plane];
    return type === "vec4u" ? bits : `bitcast<${type}>(${bits})`;
  });
  const more = view === "scalar"
    ? [SCALAR_SPAN, ...writable ? SCALAR_WRITES : []]
    : view === "vec4"
    ? [...VEC4_READS, ...writable ? vec4Writes(format) : []]
    : [];
  return { types, code: [...code, ...more.map((f) => f.replaceAll("$", x))] };
}

function ofIntegers(x: string, view: View): Accessors {
  if (view === "texels") {
    const code = `fn ${x}_unit(at: u32) -> vec4u { return ${texel(x)}; }`;
    return { types: ["vec4u"], code: [code] };
  }
  const wide = view === "unit" || view === "vec4";
  return { types: [wide ? "vec4u" : "u32"], code: [] };
}

// Access functions of buffer `$`.
const SCALAR_SPAN = `fn $_span(begin: u32, left: u32) -> vec4f {
  var four = vec4f();
  if (left > 0u) { four.x = $_at(begin); }
  if (left > 1u) { four.y = $_at(begin + 1u); }
  if (left > 2u) { four.z = $_at(begin + 2u); }
  if (left > 3u) { four.w = $_at(begin + 3u); }
  return four;
}`;
const SCALAR_WRITES = [
  "fn $_put(at: u32, value: f32) { $[at] = value; }",
  `fn $_store(begin: u32, left: u32, value: vec4f) {
  if (left > 0u) { $[begin] = value.x; }
  if (left > 1u) { $[begin + 1u] = value.y; }
  if (left > 2u) { $[begin + 2u] = value.z; }
  if (left > 3u) { $[begin + 3u] = value.w; }
}`,
];
const VEC4_READS = [
  "fn $_at(at: u32) -> vec4f { return $_four_0($_load(at)); }",
  "fn $_span(begin: u32, left: u32) -> vec4f { if (left == 0u) { return vec4f(); } return $_at(begin >> 2u); }",
];
const vec4Writes = (format: Format) => [
  `fn $_put(at: u32, value: vec4f) { $[at] = ${
    format === f32
      ? "value"
      : "vec2u(pack2x16float(value.xy), pack2x16float(value.zw))"
  }; }`,
  "fn $_store(begin: u32, left: u32, value: vec4f) { if (left > 0u) { $_put(begin >> 2u, value); } }",
];

/** The directives that WGSL must begin with. naga has subgroups without, and refuses it. */
export function directives(
  code: string,
  { F16 }: Constants,
  compiler: Compiler,
): string[] {
  const subgroups = compiler === "tint" && /\bsubgroup[A-Z]/.test(code);
  const matrices = compiler === "tint" && /\bsubgroupMatrix/.test(code);
  return [
    ...F16 === 1 ? ["enable f16;"] : [],
    ...subgroups ? ["enable subgroups;"] : [],
    ...matrices ? ["enable chromium_experimental_subgroup_matrix;"] : [],
  ];
}

/**
 * The declarations that `body` uses, directly or indirectly. The rest would only clutter
 * the shader.
 */
export function used(
  declarations: readonly string[],
  body: string,
): readonly string[] {
  const names = new Set(body.match(/\b\w+\b/g));
  const kept = declarations.toReversed().filter((text) => {
    const [, name] = /^(?:fn|alias|struct) (\w+)/.exec(text)!;
    if (!names.has(name)) return false;
    for (const word of text.match(/\b\w+\b/g)!) names.add(word);
    return true;
  });
  return kept.toReversed();
}

/** An array of sums in WGSL, a power of 2 of them, and the lanes that exchange them. */
type Exchanged = Readonly<Record<"sums" | "count" | "log" | "lane", string>>;

/**
 * WGSL that adds up `count` = 2^`log` sums over as many lanes. Each step that exchanges values
 * halves how many a lane has, until it has one, in `sums[0]`: that of {@linkcode ownedSum}.
 */
export const exchangeSums = (
  { sums, count, log, lane }: Exchanged,
): string => /* wgsl */ `
    @unroll for (var b = 0; b < ${log}; b++) {
      let upper = ((${lane} >> b) & 1u) == 1u;
      @unroll for (var i = 0; i < (${count} >> (b + 1)); i++) {
        let kept = select(${sums}[i], ${sums}[i + (${count} >> (b + 1))], upper);
        let sent = select(${sums}[i + (${count} >> (b + 1))], ${sums}[i], upper);
        ${sums}[i] = kept + subgroupShuffleXor(sent, 1u << b);
      }
    }`;

/** WGSL that declares `owned`: which of the sums {@linkcode exchangeSums} leaves a lane. */
export const ownedSum = (
  { log, lane }: Pick<Exchanged, "log" | "lane">,
): string => /* wgsl */ `
  var owned = 0u;
  @unroll for (var b = 0; b < ${log}; b++) { owned |= ((${lane} >> b) & 1u) << (${log} - 1 - b); }`;

/** Initial value of running maxima: finite, below every score, and its exp is 0. */
export const LOW = -3e38;

/**
 * WGSL functions `lanes_sum(v, tid)` and `lanes_max(v, tid)`: they reduce over groups of
 * LANES neighboring threads and return the result in each of them. If SUBGROUPS is 1,
 * LANES = 2^LOG_LANES must not exceed the smallest subgroup. Without subgroups they go
 * through workgroup memory and must be called in uniform control flow.
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
