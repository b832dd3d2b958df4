/**
 * Kernels as data. A kernel's buffer map is its contract: bindings, access, the
 * uniform struct with sizes inferred from the operands, and errors when shapes
 * disagree all follow from it.
 *
 * @module
 */
import { inlineLoads } from "./inline.ts";
import { DeviceError } from "../errors.ts";
import type { Format } from "../formats/format.ts";
import { type Matrix, type MatrixPart, rowsHeld } from "../formats/matrix.ts";
import { formatNamed } from "../formats/mod.ts";
import type { Compiler } from "../dispatch/capabilities.ts";
import type { Constants } from "../dispatch/shapes.ts";
import type { Gpu } from "./device.ts";
import type { Shader } from "./pipeline.ts";
import type { Tensor } from "./tensor.ts";
import { unroll } from "./unroll.ts";
import {
  accessors,
  directives,
  settleView,
  unitSize,
  used,
  type View,
} from "./wgsl.ts";

/** Sizes by name, as inferred from the tensors of a call. */
export type Dims = Readonly<Record<string, number>>;

/** Workgroups in x, y and z. */
export type Grid = readonly [number, number, number];

/** Shape, access and view of each buffer, in binding order. */
export type Contract = Readonly<Record<string, string>>;

/** One kernel: its contract, constants, grid and WGSL. */
export interface Kernel {
  readonly name: string;
  /**
   * By buffer: `[out|inout] sizes [as view]`, e.g. `"n k as unit"`. `any`
   * leaves a size unchecked or, alone, the whole shape. Views: see lib/webgpu/wgsl.ts.
   */
  readonly buffers: Contract | ((constants: Constants) => Contract);
  /** Additional uniforms, placed after the sizes, which are u32. */
  readonly uniforms?: Readonly<Record<string, "u32" | "f32">>;
  /** Defaults; a call may override them. Numbers become WGSL constants (u32). */
  readonly constants: Constants;
  /** Constants derived from the others, from sizes and from element types. */
  readonly derive?: (constants: Constants, dims: Dims) => Constants;
  readonly grid: (dims: Dims, constants: Record<string, number>) => Grid;
  readonly body: string;
}

/** One part of a weight matrix; it binds one buffer per plane of its format. */
export interface WeightOperand {
  readonly matrix: Matrix<Tensor>;
  readonly part: MatrixPart<Tensor>;
}

/** A tensor, a matrix with a single part, or one part of a matrix. */
export type Operand = Tensor | Matrix<Tensor> | WeightOperand;

/** The operands of a call, by buffer name. */
export type Operands = Readonly<Record<string, Operand>>;

/** Constants and uniforms of a call. */
export interface CallOptions {
  constants?: Constants;
  uniforms?: Readonly<Record<string, number>>;
  /**
   * Which sizes and uniforms are literals in the text, by name; a kernel reads the others
   * from memory. None by default.
   */
  literal?: (name: string) => boolean;
}

/** A checked call, ready to be recorded. */
export interface Prepared {
  kernel: Kernel;
  shader: Shader;
  /** Buffers in binding order; the uniforms follow, if there are any. */
  entries: GPUBindGroupEntry[];
  /** Empty if all uniforms are literals. */
  uniforms: ArrayBuffer;
  dims: Dims;
  constants: Constants;
  grid: Grid;
}

/** A grid of at least `n` workgroups, at most 65,535 per dimension: id = y · width + x. */
export function splitGrid(n: number, z = 1): Grid {
  const groups = Math.max(1, Math.ceil(n));
  const y = Math.ceil(groups / 65535);
  return [Math.ceil(groups / y), y, z];
}

/** One buffer of a contract with its operand. */
interface Bound {
  name: string;
  shape: readonly number[];
  /** Format of the elements; undefined for u32. */
  format: Format | undefined;
  /** One tensor, or the planes of a matrix. */
  buffers: readonly Tensor[];
  /** Names of the buffers in WGSL. */
  bindings: readonly string[];
  access: "in" | "out" | "inout";
  sizes: string[];
  view: View;
}

/**
 * Checks a call and prepares its dispatch.
 *
 * @throws {Error} if a shape disagrees with the contract, naming both sides, or if
 * a given constant or uniform does not exist, naming those that do.
 * @throws {DeviceError} if the kernel has more storage buffers than the device can bind.
 */
export function prepare(
  gpu: Gpu,
  kernel: Kernel,
  operands: Operands,
  options: CallOptions = {},
): Prepared {
  const { bound, dims, constants, uniforms, code } = resolve(
    kernel,
    operands,
    options,
    gpu.compiler,
  );
  const all = bound.flatMap(({ buffers, access, view }) =>
    buffers.map((tensor) => ({ tensor, access, view }))
  );
  const buffers = all.filter(({ view }) => view !== "texels").length;
  const most = gpu.limits.maxStorageBuffersPerShaderStage;
  if (buffers > most) {
    throw new DeviceError(
      `Cannot run ${kernel.name}: it binds ${buffers} storage buffers, ${gpu.name} allows ${most} (maxStorageBuffersPerShaderStage)`,
    );
  }
  const types = all.map(({ access, view }) =>
    view === "texels" ? view : access === "in" ? "read-only-storage" : "storage"
  );
  const data = uniformData(kernel, uniforms);
  const shader: Shader = {
    label: kernel.name,
    code,
    types: data.byteLength ? [...types, "uniform"] : types,
  };
  const grid = kernel.grid(
    { ...dims, ...options.uniforms },
    constants as Record<string, number>,
  );
  if (grid.some((n) => n > 65535)) {
    throw new Error(
      `Cannot run ${kernel.name}: its grid is ${
        grid.join(" × ")
      } workgroups, at most 65535 fit in a dimension`,
    );
  }
  const entries = all.map(({ tensor, view }, binding) => ({
    binding,
    resource: view === "texels" ? tensor.texels().createView() : {
      buffer: tensor.buffer,
      size: Math.max(16, Math.ceil(tensor.bytes / 16) * 16),
    },
  }));
  return { kernel, shader, entries, uniforms: data, dims, constants, grid };
}

/** The complete WGSL of a kernel for these operands. */
export function showWgsl(
  kernel: Kernel,
  operands: Operands,
  options: CallOptions = {},
  compiler: Compiler = "naga",
): string {
  return resolve(kernel, operands, options, compiler).code;
}

function resolve(
  kernel: Kernel,
  operands: Operands,
  options: CallOptions,
  compiler: Compiler,
) {
  refuseUnknown(kernel, "constant", options.constants, kernel.constants);
  refuseUnknown(kernel, "uniform", options.uniforms, kernel.uniforms);
  const given: Record<string, number | string> = {
    ...kernel.constants,
    ...options.constants,
  };
  const { buffers } = kernel;
  const contract = typeof buffers === "function" ? buffers(given) : buffers;
  const bound = Object.entries(contract).map(([name, what]) =>
    bind(kernel, name, what, operands[name])
  );
  const dims = inferDims(kernel, bound);
  for (const { name, format, view } of bound) {
    const x = name.toUpperCase();
    given[`${x}_DTYPE`] = format?.name ?? "u32";
    given[`${x}_VIEW`] = view;
    given[`${x}_UNIT`] = unitSize(format, view);
  }
  const constants = { ...given, ...kernel.derive?.(given, dims) };
  const uniforms = uniformsOf(kernel, dims, options);
  const code = source({ kernel, bound, constants, uniforms, compiler });
  return { bound, dims, constants, uniforms, code };
}

/** Throws if a name is unknown: a misspelled one would silently use the default. */
function refuseUnknown(
  { name }: Kernel,
  what: "constant" | "uniform",
  given: object = {},
  known: object = {},
): void {
  const unknown = Object.keys(given).find((key) => !(key in known));
  if (unknown === undefined) return;
  throw new Error(
    `Cannot run ${name}: it has no ${what} ${unknown} (available: ${
      Object.keys(known).join(", ") || "none"
    })`,
  );
}

function bind(
  kernel: Kernel,
  name: string,
  contract: string,
  operand: Operand | undefined,
): Bound {
  if (!operand) {
    throw new Error(`Cannot run ${kernel.name}: no tensor given for ${name}`);
  }
  const [, access, sizes, view] = contract.match(
    /^(?:(out|inout) )?([\w ]*?)(?: as (\w+))?$/,
  )!;
  const sizeNames = sizes.split(" ");
  const { shape, format, buffers } = operandOf(operand, sizeNames.length);
  const planes = buffers.length > 1
    ? format!.planes(shape.at(-1)!).map((plane) => `${name}_${plane.name}`)
    : [name];
  return {
    name,
    shape,
    format,
    buffers,
    bindings: planes,
    access: (access ?? "in") as Bound["access"],
    sizes: sizeNames,
    view: settleView((view ?? "scalar") as View, format, shape.at(-1) ?? 1),
  };
}

/** Shape, format and buffers of an operand. A matrix of one row can be bound as a vector. */
function operandOf(
  operand: Operand,
  dimensions: number,
): Pick<Bound, "shape" | "format" | "buffers"> {
  if ("dtype" in operand) {
    const { dtype, shape } = operand;
    const format = dtype === "u32" ? undefined : formatNamed(dtype);
    return { shape, format, buffers: [operand] };
  }
  const matrix = "matrix" in operand ? operand.matrix : operand;
  const [part, ...more] = "matrix" in operand ? [operand.part] : operand.parts;
  if (more.length) {
    throw new Error(
      `Cannot bind all of ${matrix.label}: it has ${
        more.length + 1
      } parts, must have 1`,
    );
  }
  const rows = rowsHeld(part);
  const shape = rows === 1 && dimensions === 1 ? [matrix.k] : [rows, matrix.k];
  return { shape, format: part.format, buffers: part.planes };
}

function inferDims(kernel: Kernel, bound: Bound[]): Dims {
  const dims: Record<string, number> = {}, from: Record<string, string> = {};
  for (const { name, shape, sizes } of bound) {
    if (sizes.length === 1 && sizes[0] === "any") continue;
    if (shape.length !== sizes.length) {
      throw new Error(
        `Cannot run ${kernel.name}: ${name} has shape [${
          shape.join(", ")
        }], it must be [${sizes.join(", ")}]`,
      );
    }
    sizes.forEach((size, i) => {
      if (size === "any") return;
      if (size in dims && dims[size] !== shape[i]) {
        throw new Error(
          `Cannot run ${kernel.name}: ${name} has shape [${
            shape.join(", ")
          }], but ${size} is ${dims[size]} in ${from[size]} and ${
            shape[i]
          } in ${name}`,
        );
      }
      dims[size] = shape[i];
      from[size] ??= name;
    });
  }
  return dims;
}

/** A size or a uniform of a call. */
interface Uniform {
  name: string;
  type: "u32" | "f32";
  /** undefined if none was given, which only a text without it may do. */
  value: number | undefined;
  /** Whether it is a literal in the text, not read from memory. */
  literal: boolean;
}

function uniformsOf(
  kernel: Kernel,
  dims: Dims,
  { uniforms: given = {}, literal = () => false }: CallOptions,
): Uniform[] {
  const types = kernel.uniforms ?? {};
  return [...Object.keys(dims), ...Object.keys(types)].map((name) => {
    const value = dims[name] ?? given[name], type = types[name] ?? "u32";
    return { name, type, value, literal: literal(name) };
  });
}

/** What the text of a call is made from. */
interface Source {
  kernel: Kernel;
  bound: Bound[];
  constants: Constants;
  uniforms: Uniform[];
  compiler: Compiler;
}

/** The generated WGSL of a kernel. */
interface Sources {
  /** Sizes and uniforms that its body reads. */
  readonly read: ReadonlySet<string>;
  /** By constants and literals; the layers of a model share it. */
  readonly texts: Map<string, string>;
}

const sources = new WeakMap<Kernel, Sources>();

function source(from: Source): string {
  const { kernel, constants, uniforms, compiler } = from;
  let known = sources.get(kernel);
  if (!known) {
    const names = kernel.body.matchAll(/\bu\.(\w+)/g);
    const read = new Set(Array.from(names, ([, name]) => name));
    sources.set(kernel, known = { read, texts: new Map() });
  }
  const { read, texts } = known;
  // A literal that is read nowhere, such as the context of a cache, makes no other text.
  const literals = uniforms.map(({ name, literal, value }) =>
    literal ? read.has(name) ? value : "unread" : null
  );
  // The constants include the format and view of each buffer.
  const key = JSON.stringify([compiler, constants, literals]);
  let code = texts.get(key);
  if (code === undefined) texts.set(key, code = write(from));
  return code;
}

function write(
  { kernel, bound, constants, uniforms, compiler }: Source,
): string {
  const lines: string[] = [];
  // Constants that only the grid uses are left out, so that pipelines can be shared.
  const mentioned = new Set(kernel.body.match(/\b[A-Z]\w*\b/g));
  for (const [name, value] of Object.entries(constants)) {
    if (typeof value === "number" && mentioned.has(name)) {
      lines.push(`const ${name}: u32 = ${value}u;`);
    }
  }
  const declarations: string[] = [];
  /** How many functions there are of those with numbers, such as `x_four[i]`, by name. */
  const fours = new Map<string, number>();
  let binding = 0;
  for (const { name, bindings, view, format, access } of bound) {
    const writable = access !== "in", mode = writable ? "read_write" : "read";
    const { types, code } = accessors(name, bindings, {
      ...{ view, format, writable },
    });
    bindings.forEach((x, i) =>
      lines.push(
        `@group(0) @binding(${binding++}) ` +
          (view === "texels"
            ? `var ${x}: texture_2d<u32>;`
            : `var<storage, ${mode}> ${x}: array<${types[i]}>;`),
      )
    );
    declarations.push(...code);
    const unit = unitSize(format, view);
    fours.set(`${name}_four`, view === "vec4" ? 1 : unit / 4);
    if (view === "unit" && format?.integers) {
      fours.set(`${name}_bytes`, unit / 4);
      fours.set(`${name}_scale`, unit / format.integers.group);
      fours.set(`${name}_min`, unit / format.integers.group);
    }
  }
  const fields = uniforms.filter(({ literal }) => !literal)
    .map(({ name, type }) => `${name}: ${type}`);
  if (fields.length) {
    lines.push(
      `struct Uniforms { ${fields.join(", ")} }`,
      `@group(0) @binding(${binding}) var<uniform> u: Uniforms;`,
    );
  }
  const [body, ...functions] = inlineLoads([
    unroll(kernel.body, constants, fours),
    ...declarations,
  ]);
  const literals = new Map(
    uniforms.filter(({ literal }) => literal).map((one) => [one.name, one]),
  );
  const code = ([...lines, ...used(functions, body)].join("\n") + body)
    .replace(/\bu\.(\w+)\b/g, (text, name: string) => {
      const found = literals.get(name);
      return found ? literalText(found) : text;
    });
  return [`// ${kernel.name}`, ...directives(code, constants, compiler), code]
    .join("\n");
}

/** A literal of WGSL, which rounds a decimal fraction to the nearest f32. */
const literalText = ({ type, value }: Uniform): string =>
  type === "f32" ? `(${value}f)` : `${value}u`;

function uniformData(
  kernel: Kernel,
  uniforms: readonly Uniform[],
): ArrayBuffer {
  const missing = uniforms.find(({ value }) => value === undefined);
  if (missing) {
    throw new Error(
      `Cannot run ${kernel.name}: no value for uniform ${missing.name}`,
    );
  }
  const read = uniforms.filter(({ literal }) => !literal);
  const data = new ArrayBuffer(Math.ceil(read.length / 4) * 16);
  const words = new DataView(data);
  read.forEach(({ type, value }, i) => {
    if (type === "f32") words.setFloat32(4 * i, value!, true);
    else words.setUint32(4 * i, value!, true);
  });
  return data;
}
