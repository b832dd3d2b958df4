/**
 * A small assembler for WebAssembly with SIMD (https://webassembly.github.io/spec/core/binary/).
 *
 * Code is a list of bytes. An instruction is a function that takes the code of its
 * operands and returns code that leaves the result on the stack, so nested calls read as
 * expressions: `f32x4.add(a.get, f32x4.splat(f32.const(1)))`.
 *
 * @module
 */

/** Encoded instructions of a function body. */
export type Code = readonly number[];
type Instruction = (...operands: Code[]) => Code;

/** Code after code: V8 copies lists in `concat`, and walks over them in `flat` and `...`. */
const joined = (...codes: Code[]): number[] =>
  ([] as number[]).concat(...codes);

const op = (...bytes: number[]): Instruction => (...operands) =>
  joined(...operands, bytes);
const simd = (number: number): Instruction => op(0xfd, ...unsigned(number));

/** LEB128 of an unsigned integer. */
function unsigned(value: number): number[] {
  const bytes = [];
  for (; value > 0x7f; value >>>= 7) bytes.push(value & 0x7f | 0x80);
  return [...bytes, value];
}

/** LEB128 of a signed 32-bit integer. */
function signed(value: number): number[] {
  const bytes = [];
  for (; value < -64 || value > 63; value >>= 7) {
    bytes.push(value & 0x7f | 0x80);
  }
  return [...bytes, value & 0x7f];
}

/** Lanes of `bytes` bytes by number, those of the first operand before those of the second. */
const shuffle = (bytes: number) => (...lanes: number[]): Instruction =>
  op(
    0xfd,
    0x0d,
    ...lanes.flatMap((lane) => times(bytes, (byte) => bytes * lane + byte)),
  );

/** A load or store `offset` bytes past the address, which need not be aligned. */
const access = (...opcode: number[]) => (offset = 0): Instruction =>
  op(...opcode, 0, ...unsigned(offset));

export const i32 = {
  const: (value: number): Code => [0x41, ...signed(value | 0)],
  add: op(0x6a),
  sub: op(0x6b),
  mul: op(0x6c),
  and: op(0x71),
  shl: op(0x74),
  shrUnsigned: op(0x76),
  load: access(0x28),
  store: access(0x36),
  lessUnsigned: op(0x49),
  /** An unsigned half word. */
  loadHalf: access(0x2f),
};

export const f32 = {
  const: (
    value: number,
  ): Code => [0x43, ...new Uint8Array(Float32Array.of(value).buffer)],
  load: access(0x2a),
  store: access(0x38),
  add: op(0x92),
  mul: op(0x94),
  div: op(0x95),
  max: op(0x97),
  lessEqual: op(0x5f),
  fromBits: op(0xbe),
  /** From an f64. */
  demote: op(0xb6),
};

export const f64 = {
  const: (
    value: number,
  ): Code => [0x44, ...new Uint8Array(Float64Array.of(value).buffer)],
  sqrt: op(0x9f),
  add: op(0xa0),
  div: op(0xa3),
  /** From an unsigned i32. */
  convert: op(0xb8),
  /** From an f32. */
  promote: op(0xbb),
};

export const v128 = {
  /** 1 if any bit is set, as i32. */
  anyTrue: simd(0x53),
  /** From 16 bytes. */
  const: (bytes: readonly number[]): Code => [0xfd, 0x0c, ...bytes],
  load: access(0xfd, 0x00),
  loadSplat16: access(0xfd, 0x08),
  loadSplat32: access(0xfd, 0x09),
  loadSplat64: access(0xfd, 0x0a),
  /** The first 4 bytes; the rest are zeros. */
  loadZero32: access(0xfd, 0x5c),
  store: access(0xfd, 0x0b),
  and: simd(0x4e),
  or: simd(0x50),
  xor: simd(0x51),
};

export const i8x16 = {
  /** Bytes of the first operand at the indices in the second; 0 where they exceed 15. */
  swizzle: simd(0x0e),
  /** `swizzle`, but indices from 16 to 127 may give any byte. */
  relaxedSwizzle: simd(0x100),
  splat: simd(0x0f),
  /** From two i16x8, signed; saturates. */
  narrow: simd(0x65),
  sub: simd(0x71),
};

export const i16x8 = {
  /** Lanes 0 to 7 are from the first operand, 8 to 15 from the second. */
  shuffle: shuffle(2),
  shiftLeft: simd(0x8b),
  shiftRight: simd(0x8c),
  shiftRightUnsigned: simd(0x8d),
  add: simd(0x8e),
  mul: simd(0x95),
  /** From the first eight bytes, unsigned. */
  extendLow: simd(0x89),
  /** From the first and last eight bytes, signed. */
  extendSigned: [simd(0x87), simd(0x88)],
  /** From two i32x4, signed; saturates. */
  narrow: simd(0x85),
  /** Eight signed bytes. */
  loadBytes: access(0xfd, 0x01),
  /** Products of the first and last eight signed bytes. */
  multiplyBytes: [simd(0x9c), simd(0x9d)],
  /**
   * Sums of two products of neighbors in i8x16. The second operand's bytes may count as
   * unsigned unless they are below 128.
   */
  relaxedDot: simd(0x112),
};

export const i32x4 = {
  splat: simd(0x11),
  /** Four unsigned half words. */
  loadHalves: access(0xfd, 0x04),
  /** From the first or last four half words, unsigned. */
  extendUnsigned: [simd(0xa9), simd(0xaa)],
  shiftLeft: simd(0xab),
  shiftRight: simd(0xac),
  add: simd(0xae),
  /** From the first or last four half words, signed. */
  extendFirst: simd(0xa7),
  extendLast: simd(0xa8),
  sub: simd(0xb1),
  mul: simd(0xb5),
  /** Sums of two products of neighbors in i16x8. */
  dot: simd(0xba),
  /**
   * Adds to the third operand sums of four products of neighbors in i8x16. The second
   * operand's bytes may count as unsigned, and their sums may saturate, unless they are
   * below 128.
   */
  relaxedDotAdd: simd(0x113),
  /** From f32x4, rounding toward zero; NaN gives 0. */
  truncate: simd(0xf8),
};

export const f64x2 = {
  lane: (lane: number): Instruction => op(0xfd, 0x21, lane),
  /** From the first two of f32x4. */
  promote: simd(0x5f),
  add: simd(0xf0),
  mul: simd(0xf2),
};

export const f32x4 = {
  splat: simd(0x13),
  /** From i32x4. */
  convert: simd(0xfa),
  lane: (lane: number): Instruction => op(0xfd, 0x1f, lane),
  /** Lanes 0 to 3 are from the first operand, 4 to 7 from the second. */
  shuffle: shuffle(4),
  greaterEqual: simd(0x46),
  nearest: simd(0x6a),
  abs: simd(0xe0),
  neg: simd(0xe1),
  sqrt: simd(0xe3),
  add: simd(0xe4),
  sub: simd(0xe5),
  mul: simd(0xe6),
  div: simd(0xe7),
  /** `b < a ? b : a`, so a where either is NaN. */
  min: simd(0xea),
  /** `a < b ? b : a`, so a where either is NaN. */
  max: simd(0xeb),
  /** `a · b + c`, rounded once or twice, whichever is faster. */
  relaxedMulAdd: simd(0x105),
};

const TYPES = { i32: 0x7f, f32: 0x7d, v128: 0x7b };
type Type = keyof typeof TYPES;

/** A local variable or parameter. */
export interface Local {
  get: Code;
  set: (value: Code) => Code;
}

/** `if (condition) then else otherwise` */
export const branch = (
  condition: Code,
  then: Code[],
  otherwise: Code[] = [],
): Code =>
  joined(condition, [0x04, 0x40], ...then, [0x05], ...otherwise, [0x0b]);

/** `while (condition) body` */
export const loop = (condition: Code, body: Code[]): Code =>
  joined(
    condition,
    [0x04, 0x40, 0x03, 0x40], // if, loop: the condition is then tested at the end
    ...body,
    condition,
    [0x0d, 0x00, 0x0b, 0x0b], // br_if loop, end, end
  );

/** `a < b ? a : b` of unsigned integers. */
export const min = (a: Code, b: Code): Code =>
  joined(a, b, i32.lessUnsigned(a, b), [0x1b]);

/** `[make(0), make(1), …]`, for unrolled loops. */
export const times = <T>(count: number, make: (index: number) => T): T[] =>
  Array.from({ length: count }, (_, index) => make(index));

/** `local += amount` */
export const increase = (local: Local, amount: number | Code): Code =>
  local.set(
    i32.add(local.get, typeof amount === "number" ? i32.const(amount) : amount),
  );

/** A function under construction. Locals and constants are added on demand. */
export class FunctionBuilder<Parameter extends string> {
  readonly parameters: Record<Parameter, Local>;
  readonly #parameterTypes: Type[];
  readonly #locals: Type[] = [];
  readonly #constants = new Map<string, Local>();

  constructor(
    readonly name: string,
    parameters: Record<Parameter, "i32" | "f32">,
  ) {
    const names = Object.keys(parameters) as Parameter[];
    this.#parameterTypes = names.map((name) => parameters[name]);
    this.parameters = Object.fromEntries(
      names.map((name, index) => [name, variable(index)]),
    ) as Record<Parameter, Local>;
  }

  local(type: Type): Local {
    return variable(this.#parameterTypes.length + this.#locals.push(type) - 1);
  }

  /**
   * A vector of 16 bytes. Constants are kept in locals that are set at the start, because
   * V8 would otherwise rebuild them in each iteration of a loop.
   */
  bytes(bytes: readonly number[]): Code {
    const key = bytes.join();
    let local = this.#constants.get(key);
    if (!local) this.#constants.set(key, local = this.local("v128"));
    return local.get;
  }

  /** A vector of four words. */
  words(words: readonly number[]): Code {
    return this.bytes([...new Uint8Array(Int32Array.from(words).buffer)]);
  }

  /** A vector of four copies of `bits`. */
  ints(bits: number): Code {
    return this.words(Array(4).fill(bits));
  }

  /** A vector of four copies of `value`. */
  floats(value: number): Code {
    return this.ints(new Int32Array(Float32Array.of(value).buffer)[0]);
  }

  /** The function's type, and its body with local declarations. */
  finish(body: Code[]): { name: string; type: number[]; code: number[] } {
    const types = this.#parameterTypes.map((type) => TYPES[type]);
    const constants = [...this.#constants].map(([bytes, local]) =>
      local.set(v128.const(bytes.split(",").map(Number)))
    );
    const code = joined(
      vector(this.#locals.map((type) => [1, TYPES[type]])),
      ...constants,
      ...body,
      [0x0b],
    );
    return {
      name: this.name,
      type: [0x60, ...unsigned(types.length), ...types, 0],
      code: joined(unsigned(code.length), code),
    };
  }
}

function variable(index: number): Local {
  const bytes = unsigned(index);
  return {
    get: [0x20, ...bytes],
    set: (value) => joined(value, [0x21], bytes),
  };
}

function vector(items: number[][]): number[] {
  return joined(unsigned(items.length), ...items);
}

function text(value: string): number[] {
  return vector([...new TextEncoder().encode(value)].map((byte) => [byte]));
}

function section(id: number, items: number[][]): number[] {
  const body = vector(items);
  return joined([id], unsigned(body.length), body);
}

/** A module that exports `functions` and imports a shared memory as `work.memory`. */
export function assemble(
  functions: ReturnType<FunctionBuilder<string>["finish"]>[],
): Uint8Array<ArrayBuffer> {
  const memory = [0x02, 0x03, 0, ...unsigned(65536)]; // shared, 0 to 65,536 pages
  const names = functions.map(({ name }) => text(name));
  return new Uint8Array(joined(
    [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // magic, version
    section(1, functions.map(({ type }) => type)),
    section(2, [[...text("work"), ...text("memory"), ...memory]]),
    section(3, functions.map((_, index) => unsigned(index))),
    section(7, names.map((name, index) => [...name, 0, ...unsigned(index)])),
    section(10, functions.map(({ code }) => code)),
  ));
}
