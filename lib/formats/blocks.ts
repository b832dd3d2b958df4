/**
 * Formats of quantised blocks, as GGUF files have them. On the device, the integers
 * (quants) of a matrix are in planes of their own, and so are the scales, so that every
 * load is aligned: in files, a block may take 17 or 210 bytes.
 *
 * A lane loads 16 bytes of a plane's lowest bits at a time, a unit of 32 quants of four
 * bits, with their scale. A plane of `bits` per quant has the same layout in every format:
 * of a unit of `words` words, four neighboring quants are in word `four % words`, one in
 * each byte, at bit `bits · ⌊four / words⌋` of it. So a shift and a mask select them as four
 * bytes, ready for integer dot products too. With four bits, that is also the order in
 * which most files store a block of 32: the low halves of 16 bytes, then the high ones.
 *
 * Elements have the bits that llama.cpp's `to_float` gives them, on the CPU and on the GPU.
 * WGSL lets a GPU read subnormal numbers as zeros. In f32, that loses only elements below
 * 2⁻¹²⁶, which MXFP4 alone can store. In f16, it would lose scales below 2⁻¹⁴, which are
 * common. llvmpipe does neither; doctor's self-test has such scales and fails where they
 * are lost.
 *
 * @module
 */
import {
  type Format,
  type Plane,
  type ReadPlane,
  type SimdBlocks,
  type SimdCode,
  STRIP,
  type WgslReader,
} from "./format.ts";
import {
  type Bits,
  bytesAt,
  gather,
  gatherQuants,
  type StoredQuants,
} from "./gather.ts";

/** A plane of scales. */
export interface ScalePlane {
  readonly name: string;
  /** Bytes per block. */
  readonly bytes: number;
  /** Where a stored block has them: from a byte on, or bits from different places. */
  readonly stored: number | readonly Bits[];
  /** WGSL type of an array element. */
  readonly type: "u32" | "vec2u" | "vec4u";
  /** How the CPU reads it. */
  readonly view: (bytes: Uint8Array) => PlaneArray;
}

/** A plane as the CPU reads it. */
export type PlaneArray = Uint8Array | Uint16Array | Uint32Array;

/** What distinguishes a format of blocks. An element is `scale · value(quant) - min`. */
export interface BlockSpec {
  readonly name: string;
  /** Elements and stored bytes of a block. */
  readonly elements: number;
  readonly bytes: number;
  /** Bits of a quant in each plane of quants, the lowest first. */
  readonly bits: readonly number[];
  /** Where a stored block has each plane's quants. */
  readonly stored: readonly StoredQuants[];
  /** Elements that share a scale. */
  readonly group: number;
  /** Whether groups have a minimum. */
  readonly min?: boolean;
  readonly scales: readonly ScalePlane[];
  /** Rearranges word-aligned blocks; see {@linkcode Format.pack}. */
  readonly pack: (
    blocks: Uint8Array,
    into: readonly Uint8Array<ArrayBuffer>[],
  ) => void;
  /** The integer that each quant stands for, in the range of an i8. */
  readonly values: readonly number[];
  /**
   * What the quants, as unsigned integers, are less; `signed` if they are of eight bits with
   * a sign. Absent if they only index `values`.
   */
  readonly less?: number | "signed";
  /**
   * Body of the WGSL function that returns `Factors(scale)`, or `Factors(scale, min)`, of
   * unit `at`: a number of each, or a vector if a unit has several groups. `read` reads
   * the planes of scales, at an expression of `at`; `Factors` is the type to return.
   */
  readonly wgsl: (read: ReadPlane, Factors: string) => string;
  /** Type of the scales of a unit if it is not a number per group. */
  readonly scaleType?: string;
  /** WGSL for scaled values; `values · scale` by default. */
  readonly scaled?: (values: string, scale: string) => string;
  /** Reads the scales and minimums of the groups of block `block`. */
  readonly decode: (
    planes: readonly PlaneArray[],
    block: number,
    scale: Float64Array,
    min: Float64Array,
  ) => void;
  /** Read them in WebAssembly; see {@linkcode SimdBlocks}. */
  readonly factors: SimdBlocks["factors"];
  readonly integers?: SimdBlocks["integers"];
}

/** Bytes of a load of the lowest bits. */
const LOAD = 16;

/** Names of the planes of quants, the lowest bits first. */
const QUANTS = ["quants", "high"];

/** Makes a format from what distinguishes it. */
export function blockFormat(spec: BlockSpec): Format {
  const { name, elements, bytes, bits, stored, scales } = spec;
  const unit = 8 * LOAD / bits[0];
  return {
    name,
    elements,
    bytes,
    loads: unit > LOAD ? [unit, STRIP, 4] : [unit, 4],
    planes: (k): Plane[] => [
      ...bits.map((bits, i) => ({ name: QUANTS[i], rowBytes: k * bits / 8 })),
      ...scales.map(({ name, bytes }) => ({
        name,
        rowBytes: k / elements * bytes,
      })),
    ],
    pack: (blocks, _, into) =>
      spec.pack(blocks.byteOffset % 4 ? blocks.slice() : blocks, into),
    gathers: [
      ...bits.map((bits, i) =>
        gatherQuants(spec, bits, unit * bits / 32, stored[i])
      ),
      ...scales.map(({ bytes: own, stored }) =>
        gather(
          bytes,
          typeof stored === "number" ? bytesAt(stored, own) : stored,
        )
      ),
    ],
    wgsl: (x, load, read) => reader(spec, unit, x, load, read),
    integers: spec.less === undefined ? undefined : {
      group: Math.min(spec.group, unit),
      offset: spec.less === "signed" ? 0 : spec.less,
      min: spec.min ?? false,
    },
    unpack: unpacker(spec, unit),
    simd: {
      ...{ bits, unit, group: spec.group, min: spec.min ?? false, elements },
      scaleBytes: scales.map(({ bytes }) => bytes),
      values: spec.values,
      factors: spec.factors,
      integers: spec.integers,
    },
  };
}

/** The type of `words` words. */
const vector = (words: number) => words === 1 ? "u32" : `vec${words}u`;

/** A mask for the lowest `bits` bits of each byte. */
const byteMask = (bits: number) => (2 ** bits - 1) * 0x01010101;

/** Declares the WGSL functions that {@linkcode Format.wgsl} describes. */
function reader(
  spec: BlockSpec,
  unit: number,
  x: string,
  load: number,
  read: ReadPlane,
): WgslReader {
  const { bits, scales, min, group, less, scaled = product } = spec;
  const fromBytes = less === undefined
    ? (bytes: string) => `${x}_values(${bytes})`
    : lessOffset(less);
  const wide = load === unit;
  const words = bits.map((bits) => unit * bits / 32);
  const groups = Math.max(1, unit / group);
  const type = spec.scaleType ?? (groups === 1 ? "f32" : `vec${groups}f`);
  const factors = min ? ["scale", "min"] : ["scale"];
  const of = wide ? ofUnit : load === STRIP ? ofStrip : ofFour;
  const kept = of(spec, words, groups, read);
  const own = kept.groups === groups
    ? type
    : kept.groups === 1
    ? "f32"
    : `vec${kept.groups}f`;
  const fields = [...kept.quants, ...factors.map((name) => [name, own])];
  const made = [...kept.load, ...factors.map((name) => kept.own(`s.${name}`))];
  const masked = [
    ...kept.quants.map(([name]) => `raw.${name}`),
    ...factors.map((name) => `select(${own}(), raw.${name}, inside)`),
  ];
  const struct = (name: string, fields: readonly string[][]) =>
    `struct ${x}_${name} { ${
      fields.map(([name, type]) => `${name}: ${type}`).join(", ")
    } }`;
  const raw = `${x}_Raw`;
  /** The words of scales that a unit needs: name, type, and how each is loaded. */
  const taken: [string, string, string][] = [];
  const body = spec.wgsl((plane, at) => {
    const name = `s${taken.length}`;
    taken.push([name, scales[plane].type, read(bits.length + plane, at)]);
    return `scales.${name}`;
  }, `${x}_Factors`);
  return {
    types: [
      ...words.map((words) => wide ? vector(words) : "u32"),
      ...scales.map(({ type }) => type),
    ],
    code: [
      ...less === undefined ? [lookup(x, spec.values)] : [],
      struct("Factors", factors.map((name) => [name, type])),
      struct("ScaleWords", taken),
      `fn ${x}_scale_words(at: u32) -> ${x}_ScaleWords { return ${x}_ScaleWords(${
        taken.map(([, , load]) => load).join(", ")
      }); }`,
      `fn ${x}_factors(scales: ${x}_ScaleWords, at: u32) -> ${x}_Factors {
  ${body}
}`,
      struct("Raw", fields),
      ...load === STRIP ? stripsOf(x, kept, unit / STRIP, factors) : [
        `fn ${x}_load(at: u32) -> ${raw} {
  ${
          wide ? "let unit = at;" : `let unit = at / ${unit / 4}u;
  let four = at % ${unit / 4}u;`
        }
  let s = ${x}_factors(${x}_scale_words(unit), unit);
  return ${raw}(${made.join(", ")});
}`,
      ],
      ...Array.from({ length: load / 4 }, (_, f) => {
        const [bytes, group] = kept.four(f);
        const value = scaled(fromBytes(bytes), `raw.scale${group}`) +
          (min ? ` - raw.min${group}` : "");
        return `fn ${x}_four_${f}(raw: ${raw}) -> vec4f { return ${value}; }`;
      }),
      `fn ${x}_masked(raw: ${raw}, inside: bool) -> ${raw} { return ${raw}(${
        masked.join(", ")
      }); }`,
      ...wide && less !== undefined ? integersOf(x, kept, spec, groups) : [],
    ],
  };
}

/** Declares how strips are loaded; there are `strips` in a unit. */
function stripsOf(
  x: string,
  { quants, load, shift, own }: Kept,
  strips: number,
  factors: readonly string[],
): string[] {
  const words = `${x}_Words`, raw = `${x}_Raw`;
  const fields = quants.map(([name, type]) => `${name}: ${type}`).join(", ");
  const made = [
    ...quants.map(([name], p) => `words.${name} >> (${shift!(p)})`),
    ...factors.map((name) => own(`factors.${name}`)),
  ];
  return [
    `struct ${words} { ${fields} }`,
    `fn ${x}_words(at: u32) -> ${words} {
  let unit = at / ${strips}u;
  let strip = at % ${strips}u;
  return ${words}(${load.join(", ")});
}`,
    `fn ${x}_raw(words: ${words}, factors: ${x}_Factors, at: u32) -> ${raw} {
  let strip = at % ${strips}u;
  return ${raw}(${made.join(", ")});
}`,
    `fn ${x}_load(at: u32) -> ${raw} {
  let unit = at / ${strips}u;
  return ${x}_raw(${x}_words(at), ${x}_factors(${x}_scale_words(unit), unit), at);
}`,
  ];
}

/** Declares the WGSL functions that {@linkcode Format.integers} describes. */
function integersOf(
  x: string,
  { quants, load, four }: Kept,
  { bits, min }: BlockSpec,
  groups: number,
): string[] {
  const words = `${x}_Words`;
  const fields = quants.map(([name, type]) => `${name}: ${type}`).join(", ");
  const part = (g: number) => groups > 1 ? `.${COMPONENTS[g]}` : "";
  const fours = 8 * LOAD / bits[0] / 4;
  return [
    `struct ${words} { ${fields}, scales: ${x}_ScaleWords }`,
    `fn ${x}_words(unit: u32) -> ${words} { return ${words}(${
      load.join(", ")
    }, ${x}_scale_words(unit)); }`,
    ...Array.from(
      { length: fours },
      (_, f) =>
        `fn ${x}_bytes_${f}(raw: ${words}) -> u32 { return ${four(f)[0]}; }`,
    ),
    ...Array.from({ length: groups }, (_, g) => [
      `fn ${x}_scale_${g}(factors: ${x}_Factors) -> f32 { return factors.scale${
        part(g)
      }; }`,
      ...min
        ? [
          `fn ${x}_min_${g}(factors: ${x}_Factors) -> f32 { return factors.min${
            part(g)
          }; }`,
        ]
        : [],
    ]).flat(),
  ];
}

/** What a load keeps of quants and factors. */
interface Kept {
  /** Names and types of the fields with quants, and how they are loaded. */
  quants: readonly string[][];
  load: readonly string[];
  /** By how much the words of a plane are shifted once they are there. */
  shift?(plane: number): string;
  /** Groups of a load, and what selects its factors from those of its unit. */
  groups: number;
  own(factors: string): string;
  /** Quants of four `f` as bytes, and what selects their factors. */
  four(f: number): [bytes: string, group: string];
}

const COMPONENTS = "xyzw";

/** Loads of a whole unit. */
const ofUnit = (
  { bits, group }: BlockSpec,
  words: readonly number[],
  groups: number,
  read: ReadPlane,
): Kept => ({
  quants: bits.map((_, p) => [QUANTS[p], vector(words[p])]),
  load: bits.map((_, p) => read(p, "unit")),
  groups,
  own: (factors) => factors,
  four: (f) => [
    fourBytes(
      bits,
      (p) =>
        `raw.${QUANTS[p]}` +
        (words[p] > 1 ? `.${COMPONENTS[f % words[p]]}` : ""),
      (p) => `${Math.floor(f / words[p]) * bits[p]}u`,
    ),
    groups > 1 ? `.${COMPONENTS[Math.floor(4 * f / group)]}` : "",
  ],
});

/**
 * Loads of fours `j` and `j + 4` of 32 elements, which share a word: number `strip` of unit
 * `unit`, where `j` is `strip % 4`.
 */
function ofStrip(
  { bits, group }: BlockSpec,
  words: readonly number[],
  groups: number,
  read: ReadPlane,
): Kept {
  const own = Math.min(groups, 32 / group);
  const [first, second] = [0, own].map((at) => COMPONENTS.slice(at, at + own));
  return {
    quants: bits.map((_, p) => [QUANTS[p], "u32"]),
    load: bits.map((_, p) =>
      read(p, `unit * ${words[p]}u + strip % ${words[p]}u`)
    ),
    // Of a unit, four `f` is at bit `bits · ⌊f / words⌋`, and the first is 8 ⌊strip / 4⌋ + j.
    shift: (p) => `(strip / 4u * 8u + strip % 4u) / ${words[p]}u * ${bits[p]}u`,
    groups: own,
    own: (factors) =>
      own === groups
        ? factors
        : `select(${factors}.${first}, ${factors}.${second}, strip >= 4u)`,
    four: (f) => [
      fourBytes(
        bits,
        (p) => `raw.${QUANTS[p]}`,
        (p) => `${4 * f / words[p] * bits[p]}u`,
      ),
      own > 1 ? `.${COMPONENTS[f]}` : "",
    ],
  };
}

/** Loads of four elements: number `four` of unit `unit`. */
const ofFour = (
  { bits, group }: BlockSpec,
  words: readonly number[],
  groups: number,
  read: ReadPlane,
): Kept => ({
  quants: [["bytes", "u32"]],
  load: [fourBytes(
    bits,
    (p) => read(p, `unit * ${words[p]}u + four % ${words[p]}u`),
    (p) => `(four / ${words[p]}u * ${bits[p]}u)`,
  )],
  groups: 1,
  own: (factors) => groups > 1 ? `${factors}[four / ${group / 4}u]` : factors,
  four: () => ["raw.bytes", ""],
});

/**
 * WGSL for four quants as the bytes of a word. `word` returns the word that has them in
 * a plane, `shift` by how much to shift it.
 */
function fourBytes(
  bits: readonly number[],
  word: (plane: number) => string,
  shift: (plane: number) => string,
): string {
  const parts = bits.map((own, p) => {
    if (own === 8) return word(p);
    const by = shift(p);
    const moved = by === "0u" ? word(p) : `(${word(p)} >> ${by})`;
    const bytes = `(${moved} & ${byteMask(own)}u)`;
    return p === 0 ? bytes : `(${bytes} << ${bits[0]}u)`;
  });
  return parts.join(" | ");
}

const product = (values: string, scale: string) => `${scale} * ${values}`;

/**
 * A function that looks up the values of four quants of up to four bits. Selecting words
 * of four values takes three selects and a shift; naga's arrays indexed at run time are
 * several times slower.
 */
function lookup(x: string, values: readonly number[]): string {
  const packed = new Uint32Array(Int8Array.from(values).buffer);
  const [a, b, c, d] = Array.from(packed, (word) => `vec4u(${word}u)`);
  return `fn ${x}_values(bytes: u32) -> vec4f {
  let q = unpack4xU8(bytes);
  let second = (q & vec4u(4u)) != vec4u();
  let words = select(select(${a}, ${b}, second), select(${c}, ${d}, second), (q & vec4u(8u)) != vec4u());
  return vec4f(bitcast<vec4i>(words << (24u - 8u * (q & vec4u(3u)))) >> vec4u(24u));
}`;
}

/**
 * Returns {@linkcode Format.unpack}. It is exact: every step fits a double, and the result
 * is rounded once.
 */
function unpacker(spec: BlockSpec, unit: number): Format["unpack"] {
  const { elements, bits: [bits, more = 0], group, scales, decode } = spec;
  const values = Float64Array.from(spec.values);
  const scale = new Float64Array(elements / group);
  const min = new Float64Array(elements / group);
  const words = unit * bits / 32, mask = byteMask(bits);
  const highWords = unit * more / 32, highMask = byteMask(more);
  /** Where a unit has each of its fours: a word and a shift in both planes. */
  const fours = Array.from({ length: unit / 4 }, (_, f) => ({
    word: f % words,
    shift: Math.floor(f / words) * bits,
    highWord: more && f % highWords,
    highShift: more && Math.floor(f / highWords) * more,
  }));
  return (planes, row, k, into) => {
    const low = wordsOf(planes[0]), high = wordsOf(planes[more ? 1 : 0]);
    const rest = scales.map(({ view }, i) =>
      view(planes[spec.bits.length + i])
    );
    let at = row * k / unit, block = row * k / elements;
    for (let i = 0; i < k; at++) {
      if (i % elements === 0) decode(rest, block++, scale, min);
      for (const { word, shift, highWord, highShift } of fours) {
        let four = low[at * words + word] >>> shift & mask;
        if (more) {
          const above = high[at * highWords + highWord] >>> highShift;
          four |= (above & highMask) << bits;
        }
        const g = i % elements / group | 0, s = scale[g], m = min[g];
        into[i++] = s * values[four & 255] - m;
        into[i++] = s * values[four >>> 8 & 255] - m;
        into[i++] = s * values[four >>> 16 & 255] - m;
        into[i++] = s * values[four >>> 24] - m;
      }
    }
  };
}

/** The integers from `from` on, as the values of `count` quants. */
export const integers = (count: number, from: number): number[] =>
  Array.from({ length: count }, (_, quant) => quant + from);

/** WGSL for quants less `offset`. */
const lessOffset = (offset: number | "signed") => (bytes: string): string =>
  offset === "signed"
    ? `vec4f(unpack4xI8(${bytes}))`
    : offset
    ? `(vec4f(unpack4xU8(${bytes})) - ${offset}.0)`
    : `vec4f(unpack4xU8(${bytes}))`;

/** WGSL for f16 number `at` of a plane of words. */
export const halfAt = (read: ReadPlane, plane: number, at: string): string =>
  `unpack2x16float(${
    read(plane, `(${at}) >> 1u`)
  } >> (((${at}) & 1u) * 16u)).x`;

/** The values of four IEEE 754 halves, in the upper halves of lanes whose rest is zero. */
export function halvesToFloat<V>(simd: SimdCode<V>, upper: V): V {
  const kept = simd.keep(upper);
  const size = simd.shiftRight(simd.and(kept, simd.bits(0x7fff0000)), 3);
  // With the exponent's bias corrected, normal numbers are right, and subnormal ones are
  // 2⁻¹⁵ plus half their value. f16.ts has fewer instructions, but f32 operands that are
  // subnormal take many cycles, and scales often are.
  const normal = simd.keep(simd.addInts(size, simd.bits(112 << 23)));
  const subnormal = simd.sub(simd.add(normal, normal), simd.number(2 ** -14));
  // The largest exponent means infinity or NaN.
  const special = simd.and(
    simd.greaterEqual(normal, simd.number(65536)),
    simd.number(Infinity),
  );
  const sign = simd.and(kept, simd.bits(0x80000000));
  // Kept, so that one vector is finished before another begins.
  return simd.keep(
    simd.or(simd.or(simd.min(normal, subnormal), special), sign),
  );
}

/** The values of the lower halves of four words, or of the upper ones. */
export const halvesOfWords = <V>(
  simd: SimdCode<V>,
  words: V,
): { lower: V; upper: V } => ({
  lower: halvesToFloat(simd, simd.shiftLeft(words, 16)),
  upper: halvesToFloat(simd, simd.and(words, simd.bits(0xffff0000))),
});

/** Bytes as they are. */
export const bytesOf = (bytes: Uint8Array): Uint8Array => bytes;

/** A view of bytes as numbers of two bytes. */
export const halvesOf = (bytes: Uint8Array): Uint16Array =>
  new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 1);

/** A view of bytes as words. */
export const wordsOf = (bytes: Uint8Array): Uint32Array =>
  new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2);

/** Masks of the lowest four bits, two bits or bit of each byte of a word. */
export const NIBBLES = 0x0f0f0f0f, PAIRS = 0x03030303, BITS = 0x01010101;
