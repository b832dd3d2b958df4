/**
 * Subgroup matrices in plain WGSL, for compilers and devices without them: each of 32
 * neighboring threads stands for a lane of a subgroup and keeps half a row of a result.
 */
import type { Pretence } from "./wrapped_gpu.ts";
import { Gpu } from "../../lib/webgpu/device.ts";
import { HALF_MATRICES } from "../../lib/dispatch/matrices.ts";

const PLAIN = /* wgsl */ `
struct PlainFactor { memory: u32, block: u32, offset: u32, stride: u32, by_column: bool }
struct PlainResult { low: vec4f, high: vec4f }
// Words are read where they were loaded from: memory must not change before a product.
fn plain_multiply(left: PlainFactor, right: PlainFactor, before: PlainResult, lane: u32) -> PlainResult {
  var result = before;
  let row = left.offset + lane / 2u * left.stride;
  for (var w = 0u; w < 8u; w++) {
    let l = plain_word(left.memory, left.block, row, w);
    if (right.by_column) {
      let at = right.offset + lane % 2u * 8u * right.stride;
      var dots: array<f32, 8>;
      ${
  [0, 1, 2, 3, 4, 5, 6, 7].map((c) =>
    `dots[${c}] = dot(l, plain_word(right.memory, right.block, at + ${c}u * right.stride, w));`
  ).join("\n")
}
      result.low += vec4f(dots[0], dots[1], dots[2], dots[3]);
      result.high += vec4f(dots[4], dots[5], dots[6], dots[7]);
    } else {
      let at = right.offset + 2u * w * right.stride + lane % 2u;
      for (var i = 0u; i < 2u; i++) {
        let begin = at + i * right.stride;
        let low = vec4f(plain_word(right.memory, right.block, begin, 0u), plain_word(right.memory, right.block, begin, 1u));
        let high = vec4f(plain_word(right.memory, right.block, begin, 2u), plain_word(right.memory, right.block, begin, 3u));
        result.low += select(l.x, l.y, i == 1u) * low;
        result.high += select(l.x, l.y, i == 1u) * high;
      }
    }
  }
  return result;
}`;

/** Two halves of the row that begins at `at` of a block. */
const wordReader = (memories: readonly string[]) => /* wgsl */ `
fn plain_word(memory: u32, block: u32, at: u32, w: u32) -> vec2f {
  var word = 0u;
  ${
  memories.map((name, i) =>
    `if (memory == ${i}u) { word = ${name}[block][at + w / 4u][w % 4u]; }`
  ).join("\n")
}
  return unpack2x16float(word);
}`;

/** Stores a result in a block of vec4u. */
const writer = (memory: string) => /* wgsl */ `
fn store_row_major_${memory}(block: u32, offset: u32, value: PlainResult, stride: u32, lane: u32) {
  let at = offset + lane / 2u * stride + lane % 2u * 2u;
  ${memory}[block][at] = bitcast<vec4u>(value.low);
  ${memory}[block][at + 1u] = bitcast<vec4u>(value.high);
}`;

/** `text` from `begin`, up to the bracket that closes `open`. */
function closed(text: string, begin: number, open: string): string {
  const close = open === "[" ? "]" : ")";
  let depth = 1, end = begin;
  for (; depth > 0; end++) {
    if (text[end] === open) depth++;
    else if (text[end] === close) depth--;
    else if (text[end] === undefined) throw new Error(`no ${close} in ${text}`);
  }
  return text.slice(begin, end - 1);
}

/**
 * Rewrites the finished WGSL of a kernel whose entry point has `tid`, the index of the
 * thread, and takes `subgroup` and `lane` from built-in values. Matrices are in workgroup
 * memory of blocks of vec4u.
 *
 * @throws {Error} if something of subgroup matrices is left.
 */
function withoutSubgroupMatrices(code: string): string {
  const memories: string[] = [];
  const index = (name: string) => {
    if (!memories.includes(name)) memories.push(name);
    return memories.indexOf(name);
  };
  let text = "", from = 0;
  const call =
    /subgroupMatrix(Load|Store)<(?:\w+, )?(row_major|col_major)>\(&(\w+)\[|subgroupMatrixMultiplyAccumulate\(/g;
  for (const match of code.matchAll(call)) {
    const [whole, use, order, memory] = match;
    const begin = match.index + whole.length;
    text += code.slice(from, match.index);
    if (!use) {
      const values = closed(code, begin, "(");
      text += `plain_multiply(${values}, lane)`;
      from = begin + values.length + 1;
      continue;
    }
    const block = closed(code, begin, "["), after = begin + block.length + 1;
    const rest = closed(code, after, "("), number = index(memory);
    text += use === "Load"
      ? `PlainFactor(${number}u, ${block}${rest}, ${order === "col_major"})`
      : `store_${order}_${memory}(${block}${rest}, lane)`;
    from = after + rest.length + 1;
  }
  text = (text + code.slice(from))
    .replaceAll(/^enable (?!f16;).*\n/gm, "")
    .replaceAll(/subgroup_matrix_(left|right)<f16, 16, 16>/g, "PlainFactor")
    .replaceAll(/subgroup_matrix_result<f32, 16, 16>/g, "PlainResult")
    .replace(
      /,\s*@builtin\(subgroup_id\) subgroup: u32, @builtin\(subgroup_invocation_id\) lane: u32\) \{/,
      ") {\n  let subgroup = tid / 32u;\n  let lane = tid % 32u;",
    );
  if (/subgroup_?[mM]atrix|subgroup_id/.test(text)) {
    throw new Error(`cannot do without subgroup matrices in ${text}`);
  }
  return [text, PLAIN, wordReader(memories), ...memories.map(writer)].join("");
}

/** WGSL that this machine can compile. */
export const plainWgsl = (code: string): string =>
  /subgroupMatrix/.test(code) ? withoutSubgroupMatrices(code) : code;

/** A view of a device that runs kernels with subgroup matrices in plain WGSL. */
export function withMatrices(gpu: Gpu): Gpu {
  const device = new Proxy(gpu.device, {
    get(target, key) {
      if (key === "createShaderModule") {
        return (module: GPUShaderModuleDescriptor) =>
          target.createShaderModule({
            ...module,
            code: plainWgsl(module.code),
          });
      }
      const value = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const subgroupMatrices = [HALF_MATRICES];
  return new Gpu(gpu.adapter, device, {
    ...gpu,
    subgroupMatrices,
    choices: [],
  });
}

/**
 * WebGPU with an adapter that looks like hardware with tensor cores, whose other kernels do
 * without subgroups: this machine's may have fewer than 32 lanes.
 */
export const MATRIX_GPU: Pretence = {
  info: {
    description: "Test GPU",
    isFallbackAdapter: false,
    subgroupMinSize: 32,
    subgroupMaxSize: 32,
    subgroupMatrixConfigs: [HALF_MATRICES],
  } as Partial<GPUAdapterInfo>,
  without: ["subgroups"],
  more: ["chromium-experimental-subgroup-matrix"],
  shader: plainWgsl,
};
