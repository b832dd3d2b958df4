/**
 * Kernels as data. A kernel's buffer map is its contract: it gives bindings,
 * access, the uniform struct with the sizes inferred from the tensors, and the
 * error when shapes disagree.
 *
 * @module
 */
import { BYTES, elements, unitSize } from "../dtype.ts";
import { DeviceError } from "../errors.ts";
import type { Constants } from "../dispatch/shapes.ts";
import type { Gpu } from "./device.ts";
import type { Shader } from "./pipeline.ts";
import type { Tensor, TensorPart } from "./tensor.ts";
import { unroll } from "./unroll.ts";
import { accessors, elementType, settleView, type View } from "./wgsl.ts";

/** Sizes by name, as inferred from the tensors of a call. */
export type Dims = Readonly<Record<string, number>>;

/** Workgroups in x, y and z. */
export type Grid = readonly [number, number, number];

/** What each buffer is, in binding order. */
export type Contract = Readonly<Record<string, string>>;

/** One kernel: its contract, constants, grid and WGSL. */
export interface Kernel {
  readonly name: string;
  /**
   * By buffer: `[out|inout] sizes [as view]`, e.g. `"n k as unit"`. `any`
   * leaves a size, or alone the whole shape, unchecked. Views: see lib/webgpu/wgsl.ts.
   */
  readonly buffers: Contract | ((constants: Constants) => Contract);
  /** Further uniforms beside the sizes, which are u32. */
  readonly uniforms?: Readonly<Record<string, "u32" | "f32">>;
  /** Defaults; a call may override them. Numbers become WGSL constants (u32). */
  readonly constants: Constants;
  /** Constants that follow from others, sizes or element types. */
  readonly derive?: (constants: Constants, dims: Dims) => Constants;
  readonly grid: (dims: Dims, constants: Record<string, number>) => Grid;
  readonly body: string;
}

/** A kernel with a fixed contract; a plain object, named for what it is at its definition. */
export function kernel(spec: Kernel): Kernel {
  return spec;
}

/** A tensor, or one part of a split one. */
export type Operand = Tensor | { tensor: Tensor; part: TensorPart };

/** The tensors of a call, by buffer name. */
export type Operands = Readonly<Record<string, Operand>>;

/** What a call gives beside its buffers. */
export interface CallOptions {
  constants?: Constants;
  uniforms?: Readonly<Record<string, number>>;
}

/** A call whose shapes agree with the kernel's contract. */
export interface Prepared {
  kernel: Kernel;
  shader: Shader;
  /** Buffers in binding order; the uniforms follow. */
  entries: GPUBindGroupEntry[];
  uniforms: ArrayBuffer;
  dims: Dims;
  constants: Constants;
  grid: Grid;
}

/** `n` workgroups as a grid that respects 65,535 per dimension: id = y · width + x. */
export function splitGrid(n: number, z = 1): Grid {
  const groups = Math.max(1, Math.ceil(n));
  const y = Math.ceil(groups / 65535);
  return [Math.ceil(groups / y), y, z];
}

interface Bound {
  name: string;
  tensor: Tensor;
  dtype: Tensor["dtype"];
  shape: readonly number[];
  part: TensorPart;
  access: "in" | "out" | "inout";
  sizes: string[];
  view: View;
}

/**
 * Checks shapes and gathers what a dispatch needs.
 *
 * @throws {Error} if a shape disagrees with the contract, naming both sides, or if
 * the kernel lacks a constant or uniform that is given, naming those it has.
 * @throws {DeviceError} if the adapter binds fewer buffers than the kernel has.
 */
export function prepare(
  gpu: Gpu,
  kernel: Kernel,
  operands: Operands,
  options: CallOptions = {},
): Prepared {
  const { bound, dims, constants, code } = resolve(kernel, operands, options);
  const most = gpu.limits.maxStorageBuffersPerShaderStage;
  if (bound.length > most) {
    throw new DeviceError(
      `Cannot run ${kernel.name}: it binds ${bound.length} buffers, ${gpu.name} allows ${most} (maxStorageBuffersPerShaderStage)`,
    );
  }
  const types = bound.map(({ access, view }) =>
    view === "texels" ? view : access === "in" ? "read-only-storage" : "storage"
  );
  const shader: Shader = {
    label: kernel.name,
    code,
    types: [...types, "uniform"],
  };
  const uniforms = uniformData(kernel, dims, options.uniforms ?? {});
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
  const entries = bound.map((
    { tensor, part, dtype, shape, view },
    binding,
  ) => ({
    binding,
    resource: view === "texels" ? tensor.texels(part).createView() : {
      buffer: part.buffer,
      offset: part.offset,
      size: Math.max(16, Math.ceil(elements(shape) * BYTES[dtype] / 16) * 16),
    },
  }));
  return { kernel, shader, entries, uniforms, dims, constants, grid };
}

/** The finished WGSL of a kernel for these operands. */
export function showWgsl(
  kernel: Kernel,
  operands: Operands,
  options: CallOptions = {},
): string {
  return resolve(kernel, operands, options).code;
}

function resolve(kernel: Kernel, operands: Operands, options: CallOptions) {
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
  for (const b of bound) {
    const x = b.name.toUpperCase();
    given[`${x}_DTYPE`] = b.dtype;
    given[`${x}_VIEW`] = b.view;
    given[`${x}_UNIT`] = unitSize(b.dtype);
  }
  const constants = { ...given, ...kernel.derive?.(given, dims) };
  return {
    bound,
    dims,
    constants,
    code: source(kernel, bound, dims, constants),
  };
}

/** A misspelled name would be a default in silence. */
function refuseUnknown(
  { name }: Kernel,
  what: "constant" | "uniform",
  given: object = {},
  known: object = {},
): void {
  const unknown = Object.keys(given).find((key) => !(key in known));
  if (unknown === undefined) return;
  throw new Error(
    `Cannot run ${name}: it has no ${what} ${unknown}, but ${
      Object.keys(known).join(", ") || "none"
    }`,
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
  const split = "tensor" in operand;
  const tensor = split ? operand.tensor : operand;
  const { part } = operand;
  const shape = split ? [part.rows, ...tensor.shape.slice(1)] : tensor.shape;
  const last = shape.at(-1) ?? 1;
  return {
    name,
    tensor,
    dtype: tensor.dtype,
    shape,
    part,
    access: (access ?? "in") as Bound["access"],
    sizes: sizes.split(" "),
    view: settleView((view ?? "scalar") as View, tensor.dtype, last),
  };
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

function source(
  kernel: Kernel,
  bound: Bound[],
  dims: Dims,
  constants: Constants,
): string {
  const lines = [`// ${kernel.name}`];
  if (constants.F16 === 1) lines.push("enable f16;");
  // What only the grid depends on would make another pipeline of the same text.
  const mentioned = mentionedIn(kernel);
  for (const [name, value] of Object.entries(constants)) {
    if (typeof value === "number" && mentioned.has(name)) {
      lines.push(`const ${name}: u32 = ${value}u;`);
    }
  }
  bound.forEach(({ name, view, dtype, access }, binding) => {
    const mode = access === "in" ? "read" : "read_write";
    lines.push(
      `@group(0) @binding(${binding}) ` +
        (view === "texels"
          ? `var ${name}: texture_2d<u32>;`
          : `var<storage, ${mode}> ${name}: array<${
            elementType(view, dtype)
          }>;`),
    );
  });
  const fields = [
    ...Object.keys(dims).map((name) => `${name}: u32`),
    ...Object.entries(kernel.uniforms ?? {}).map(([n, t]) => `${n}: ${t}`),
  ];
  lines.push(
    `struct Uniforms { ${fields.join(", ") || "unused: u32"} }`,
    `@group(0) @binding(${bound.length}) var<uniform> u: Uniforms;`,
  );
  for (const { name, view, dtype, access } of bound) {
    lines.push(accessors(name, view, dtype, access !== "in"));
  }
  return lines.join("\n") + expand(kernel, constants);
}

/** Names in capitals of bodies: every call of a kernel asks for the same. */
const mentions = new WeakMap<Kernel, ReadonlySet<string>>();

function mentionedIn(kernel: Kernel): ReadonlySet<string> {
  let names = mentions.get(kernel);
  if (!names) {
    names = new Set(kernel.body.match(/\b[A-Z]\w*\b/g));
    mentions.set(kernel, names);
  }
  return names;
}

/** Bodies, expanded, by their constants: every layer of a model asks for the same. */
const expanded = new WeakMap<Kernel, Map<string, string>>();

function expand(kernel: Kernel, constants: Constants): string {
  let known = expanded.get(kernel);
  if (!known) expanded.set(kernel, known = new Map());
  const key = JSON.stringify(constants);
  let body = known.get(key);
  if (body === undefined) {
    known.set(key, body = unroll(kernel.body, constants));
  }
  return body;
}

function uniformData(
  kernel: Kernel,
  dims: Dims,
  given: Readonly<Record<string, number>>,
): ArrayBuffer {
  const types = kernel.uniforms ?? {};
  const names = [...Object.keys(dims), ...Object.keys(types)];
  const data = new ArrayBuffer(Math.max(16, Math.ceil(names.length / 4) * 16));
  const words = new DataView(data);
  names.forEach((name, i) => {
    const value = dims[name] ?? given[name];
    if (value === undefined) {
      throw new Error(
        `Cannot run ${kernel.name}: no value for uniform ${name}`,
      );
    }
    if (types[name] === "f32") words.setFloat32(4 * i, value, true);
    else words.setUint32(4 * i, value, true);
  });
  return data;
}
