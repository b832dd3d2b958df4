/**
 * Subgroup matrices in plain WGSL, for compilers and devices without them: each of 32
 * neighboring threads stands for a lane of a subgroup and keeps half a row of a result.
 */
import { gpuTest, Trial } from "./gpu.ts";
import type { Pretence } from "./wrapped_gpu.ts";
import { Gpu } from "../../lib/webgpu/device.ts";
import { HALF_MATRICES } from "../../lib/dispatch/matrices.ts";

const PLAIN = /* wgsl */ `
struct PlainLeft { low: vec4u, high: vec4u } // a row of 16 halves
struct PlainRight { memory: u32, block: u32, offset: u32, stride: u32, by_column: bool }
struct PlainResult { low: vec4f, high: vec4f }
// Right factors are read where they were loaded from: memory must not change before.
fn plain_multiply(left: PlainLeft, right: PlainRight, before: PlainResult, lane: u32) -> PlainResult {
  var result = before;
  for (var w = 0u; w < 8u; w++) {
    let l = unpack2x16float(select(left.high[w % 4u], left.low[w % 4u], w < 4u));
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

/** Loads a left factor from a block of vec4u, stores a result in one. */
const accessors = (memory: string) => /* wgsl */ `
fn left_row_major_${memory}(block: u32, offset: u32, stride: u32, lane: u32) -> PlainLeft {
  let at = offset + lane / 2u * stride;
  return PlainLeft(${memory}[block][at], ${memory}[block][at + 1u]);
}
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

const CALL =
  /subgroupMatrix(Load|Store)<(?:(Left|Right), )?(row_major|col_major)>\(&(\w+)\[|subgroupMatrixMultiplyAccumulate\(/;

/** Replaces calls, and those in their arguments; adds the memory that they use. */
function replaceCalls(code: string, memories: string[]): string {
  const match = CALL.exec(code);
  if (!match) return code;
  const [whole, use, side, order, memory] = match;
  const begin = match.index + whole.length, before = code.slice(0, match.index);
  const after = (end: number) => replaceCalls(code.slice(end + 1), memories);
  if (!use) {
    const values = closed(code, begin, "(");
    return `${before}plain_multiply(${replaceCalls(values, memories)}, lane)${
      after(begin + values.length)
    }`;
  }
  if (!memories.includes(memory)) memories.push(memory);
  const block = closed(code, begin, "["), next = begin + block.length + 1;
  const rest = closed(code, next, "("), where = `${block}${rest}`;
  const call = use === "Store"
    ? `store_${order}_${memory}(${where}, lane)`
    : side === "Left"
    ? `left_${order}_${memory}(${where}, lane)`
    : `PlainRight(${memories.indexOf(memory)}u, ${where}, ${
      order === "col_major"
    })`;
  return before + call + after(next + rest.length);
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
  const text = replaceCalls(code, memories)
    .replaceAll(/^enable (?!f16;).*\n/gm, "")
    .replaceAll(/subgroup_matrix_left<f16, 16, 16>/g, "PlainLeft")
    .replaceAll(/subgroup_matrix_right<f16, 16, 16>/g, "PlainRight")
    .replaceAll(/subgroup_matrix_result<f32, 16, 16>/g, "PlainResult")
    .replace(
      /,\s*@builtin\(subgroup_id\) subgroup: u32, @builtin\(subgroup_invocation_id\) lane: u32\) \{/,
      ") {\n  let subgroup = tid / 32u;\n  let lane = tid % 32u;",
    );
  const left = /.*(subgroup_?[mM]atrix|subgroup_id).*/.exec(text);
  if (left) throw new Error(`cannot do without subgroup matrices: ${left[0]}`);
  return [text, PLAIN, wordReader(memories), ...memories.map(accessors)]
    .join("");
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

/** Registers a test that runs without tensor cores: their instructions are replaced. */
export function matrixTest(
  name: string,
  fn: (trial: Trial) => void | Promise<void>,
): void {
  gpuTest(name, async (gpu, given) => {
    using trial = new Trial(withMatrices(gpu), given.draw);
    await fn(trial);
    trial.gpu.check();
  });
}
