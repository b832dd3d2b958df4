/**
 * Finished WGSL that checks every index as it runs, for implementations that do not, and a
 * device whose shaders are checked so.
 */
import { AssertionError } from "@std/assert";
import { Gpu } from "../../lib/webgpu/device.ts";

/** Where the first index outside is kept, beside a kernel's own bindings. */
const BINDING = 63;
/** A site, the index and the number of elements. */
const WORDS = 3;

const CHECK = (sites: number) => /* wgsl */ `
@group(0) @binding(${BINDING}) var<storage, read_write> outside: array<atomic<u32>, ${WORDS}>;
fn checked_index(i: u32, n: u32, site: u32) -> u32 {
  if (i < n) { return i; }
  if (atomicMax(&outside[0], ${sites}u + site) == 0u) {
    atomicStore(&outside[1], i);
    atomicStore(&outside[2], n);
  }
  return 0u;
}
`;

/** An index of literals, which compilers check in vectors. */
const CONSTANT = /^[\d\su+*/%()-]+$/;
const NAMED = /\b([A-Za-z_]\w*)\[/g;
const TEXELS = /textureLoad\((\w+), vec2u\(([^,]+), ([^,]+)\), 0\)/g;

/** The text up to the bracket that closes the one before `begin`. */
function bracketed(code: string, begin: number): string {
  let depth = 1, end = begin;
  for (; depth > 0; end++) {
    if (code[end] === "[") depth++;
    else if (code[end] === "]") depth--;
    else if (code[end] === undefined) throw new Error("a [ is not closed");
  }
  return code.slice(begin, end - 1);
}

/** The lengths of an array type, outermost first, as WGSL; none if it is no array. */
function lengthsOf(type: string, name: string): string[] {
  const [, inner] = /^array<(.*)>$/s.exec(type.trim()) ?? [];
  if (inner === undefined) return [];
  let depth = 0, comma = -1;
  for (let i = 0; i < inner.length; i++) {
    if ("<(".includes(inner[i])) depth++;
    else if (">)".includes(inner[i])) depth--;
    else if (inner[i] === "," && depth === 0) comma = i;
  }
  if (comma < 0) return [`arrayLength(&${name})`, ...lengthsOf(inner, name)];
  const length = `u32(${inner.slice(comma + 1)})`;
  return [length, ...lengthsOf(inner.slice(0, comma), name)];
}

/** The lengths of all arrays that are declared. */
function declaredArrays(code: string): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (
    const [, name, type] of code.matchAll(
      /\bvar(?:<[^>]*>)?\s+(\w+)\s*:\s*(array<[^;=]*>)\s*[;=]/g,
    )
  ) found.set(name, lengthsOf(type, name));
  return found;
}

/** The fewest elements of a vector of this name; four if no type says so. */
function vectorLength(code: string, name: string): string {
  const types = code.matchAll(
    new RegExp(`\\b${name}\\s*:\\s*vec([234])`, "g"),
  );
  return `${Math.min(4, ...[...types].map(([, n]) => Number(n)))}u`;
}

/**
 * Lets a text check its indices. What is no array is a vector.
 *
 * @param sites gets a line for each index, whose place is its number
 */
export function withChecks(code: string, sites: string[]): string {
  const arrays = declaredArrays(code), before = sites.length + 1;
  const [, kernel = "a shader"] = /^\/\/ (\w+)/.exec(code) ?? [];
  const checked = (index: string, length: string, shown: string) => {
    const site = sites.push(`${kernel}: ${shown}`) - before + 1;
    return `checked_index(u32(${index}), ${length}, ${site}u)`;
  };
  const rewrite = (text: string): string => {
    let out = "", from = 0;
    NAMED.lastIndex = 0;
    for (let match; (match = NAMED.exec(text)) !== null;) {
      const [whole, name] = match;
      out += text.slice(from, match.index) + name;
      let at = match.index + whole.length - 1;
      for (let depth = 0; text[at] === "["; depth++) {
        const index = bracketed(text, at + 1);
        const length = arrays.get(name)?.[depth];
        out += length === undefined && CONSTANT.test(index)
          ? `[${index}]`
          : `[${
            checked(
              rewrite(index),
              length ?? vectorLength(code, name),
              `${name}[${index}]`,
            )
          }]`;
        at += index.length + 2;
      }
      from = NAMED.lastIndex = at;
    }
    return out + text.slice(from);
  };
  const begin = code.search(/\n(?:@compute|fn) /);
  const [head, functions] = [code.slice(0, begin), code.slice(begin)];
  const texels = functions.replaceAll(
    TEXELS,
    (_, name, x, y) =>
      `textureLoad(${name}, vec2u(${
        ["x", "y"].map((axis, i) =>
          checked([x, y][i], `textureDimensions(${name}).${axis}`, name)
        )
      }), 0)`,
  );
  return head + CHECK(before - 1) + rewrite(texels);
}

/** A device that checks the indices of its shaders. */
export interface Checked {
  gpu: Gpu;
  /** @throws {AssertionError} if an index was outside, naming the kernel. */
  assertInside(what: string): Promise<void>;
}

/** A view of a device that checks the indices of its shaders. */
export function checkingBounds(gpu: Gpu): Checked {
  const sites: string[] = [];
  const { device } = gpu;
  const outside = device.createBuffer({
    size: 16,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC |
      GPUBufferUsage.COPY_DST,
  });
  const own = {
    createShaderModule: (module: GPUShaderModuleDescriptor) =>
      device.createShaderModule({
        ...module,
        code: withChecks(module.code, sites),
      }),
    createBindGroupLayout: (layout: GPUBindGroupLayoutDescriptor) =>
      device.createBindGroupLayout({
        ...layout,
        entries: [...layout.entries, {
          binding: BINDING,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type: "storage" },
        }],
      }),
    createBindGroup: (group: GPUBindGroupDescriptor) =>
      device.createBindGroup({
        ...group,
        entries: [
          ...group.entries,
          { binding: BINDING, resource: { buffer: outside } },
        ],
      }),
  };
  const checking = new Proxy(device, {
    get(target, key) {
      if (key in own) return Reflect.get(own, key);
      const value = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  return {
    gpu: new Gpu(gpu.adapter, checking, { ...gpu, choices: [] }),
    async assertInside(what) {
      const bytes = await gpu.readBuffer(outside, 0, 16);
      const [site, index, length] = new Uint32Array(bytes);
      if (site === 0) return;
      device.queue.writeBuffer(outside, 0, new Uint32Array(4));
      throw new AssertionError(
        `${what}: ${sites[site - 1]} is at ${index} of ${length}`,
      );
    },
  };
}
