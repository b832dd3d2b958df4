/**
 * The statistics of AMD's RADV compiler for the kernels: the variants, the chips, and the
 * table. compiler.ts runs the compiler.
 *
 * @module
 */
import { inPasses } from "../../../kernels/define.ts";
import { findKernel, KERNEL_NAMES, KERNELS } from "../../../kernels/list.ts";
import { described } from "../../errors.ts";
import type { Qwen3Config } from "../../checkpoint/config.ts";
import type { Format } from "../../formats/format.ts";
import type { Constants } from "../../dispatch/shapes.ts";
import { tryInstead, WIDTH, wrap } from "../../text/messages.ts";
import type { Shader } from "../../webgpu/pipeline.ts";
import {
  MOST_TOKENS,
  requireConstants,
  type Shown,
  showVariants,
  type Sketched,
} from "../show.ts";

/** Chips, as RADV_FORCE_FAMILY names them, by generation. */
const GENERATIONS: Readonly<Record<string, readonly string[]>> = {
  GFX6: ["tahiti", "pitcairn", "verde", "oland", "hainan"],
  GFX7: ["bonaire", "hawaii", "kaveri", "kabini"],
  GFX8: ["tonga", "iceland", "carrizo", "fiji", "stoney", "polaris10"],
  GFX9: ["vega10", "vega12", "vega20", "raven", "raven2", "renoir"],
  GFX10: ["navi10", "navi12", "navi14"],
  "GFX10.3": ["navi21", "navi22", "navi23", "navi24", "vangogh", "rembrandt"],
  GFX11: ["navi31", "navi32", "navi33", "phoenix", "gfx1150", "gfx1151"],
  GFX12: ["gfx1200", "gfx1201"],
};

/** Names of all chips. */
export const CHIP_NAMES: readonly string[] = Object.values(GENERATIONS).flat();

/** A chip that RADV compiles for. */
export interface Chip {
  name: string;
  generation: string;
}

/**
 * The chips of a list like `navi21,navi31`.
 *
 * @throws {Error} if one of them is unknown.
 */
export function readChips(list: string): Chip[] {
  return list.split(",").map((given) => {
    const name = given.trim();
    const [generation] = Object.entries(GENERATIONS).find(([, names]) =>
      names.includes(name)
    ) ?? [];
    if (!generation) {
      throw new Error(
        `Cannot compile for "${name}": no such chip, ${
          tryInstead(name, CHIP_NAMES, "deno task radv --help")
        }`,
      );
    }
    return { name, generation };
  });
}

/**
 * An AMD adapter as Deno reports it on RADV: 64 KiB of workgroup memory and 1,024 threads
 * on every chip. Kernels use 32 lanes of a subgroup, whether it has 32 or 64 (see
 * lib/webgpu/device.ts), so all chips run the same variants.
 */
export const AMD_DEVICE: Sketched = {
  name: "an AMD adapter",
  adapterClass: "AMD",
  vulkan: true,
  f16: true,
  software: false,
  subgroupSize: 32,
  limits: {
    maxComputeWorkgroupStorageSize: 65536,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxStorageBuffersPerShaderStage: 16,
  },
};

/** Whether tokens wait for this kernel, so it must not spill. */
export function isHot(name: string): boolean {
  const kernel = findKernel(name);
  return kernel !== undefined && inPasses(kernel);
}

/** Options of {@linkcode variantsOnAmd}. */
export interface VariantOptions {
  config: Qwen3Config;
  /** All by default; `attendDecode` or `attend_decode`. */
  kernels?: readonly string[];
  /** Tokens of the passes. */
  tokens?: readonly number[];
  format?: Format;
  constants?: Constants;
}

/**
 * Rows of decode steps, few and many, and of prompts in each class of tiles, including
 * prompts that leave tiles partly empty.
 */
export const PASSES: readonly number[] = [1, 4, 16, 32, 40, 64, 512, 2048];

/**
 * The passes of a list like `1,512`.
 *
 * @throws {Error} if one of them is not an integer from 1 to {@linkcode MOST_TOKENS}.
 */
export function readPasses(list: string): number[] {
  return list.split(",").map((text) => {
    const tokens = text.trim() === "" ? NaN : Number(text);
    if (Number.isInteger(tokens) && tokens >= 1 && tokens <= MOST_TOKENS) {
      return tokens;
    }
    const range = tokens > MOST_TOKENS
      ? `up to ${MOST_TOKENS}`
      : "of at least 1";
    throw new Error(
      `Cannot compile for RADV: --tokens has ${
        described(text.trim())
      }, must be integers ${range} like 1,512`,
    );
  });
}

/**
 * Names of the kernels that are asked for, or of all, before anything is opened.
 *
 * @throws {Error} if there is no such kernel, or a constant that one does not have.
 */
export function kernelsToCompile(
  names: readonly string[],
  constants?: Constants,
): string[] {
  const asked = names.map((name) => {
    const kernel = findKernel(name);
    if (kernel) return kernel;
    throw new Error(
      `Cannot compile ${described(name)}: no such kernel, ${
        tryInstead(name, KERNEL_NAMES, "deno task radv --help")
      }`,
    );
  });
  const wanted = asked.length ? asked : KERNELS;
  for (const kernel of wanted) {
    requireConstants(kernel, constants, `Cannot compile ${kernel.name}`);
  }
  return wanted.map(({ name }) => name);
}

/**
 * Every distinct WGSL that a model's passes run on AMD, with f16 matmuls and without, and
 * to which `constants` may be given.
 *
 * @throws {Error} if there is no such kernel, or no variant of one may have `constants`.
 */
export function variantsOnAmd(
  { kernels = [], tokens = PASSES, ...options }: VariantOptions,
): Shown[] {
  const wanted = kernelsToCompile(kernels, options.constants);
  const found = new Map<string, Shown>(), refused = new Map<string, Error>();
  const onLeftOut = (kernel: string, why: Error) => refused.set(kernel, why);
  for (const f16 of [true, false]) {
    const device = { ...AMD_DEVICE, f16 };
    for (const n of tokens) {
      const pass = { ...options, tokens: n, onLeftOut };
      for (const shown of showVariants(wanted, device, pass)) {
        if (!found.has(shown.wgsl)) found.set(shown.wgsl, shown);
      }
    }
  }
  const variants = [...found.values()];
  for (const [kernel, why] of refused) {
    if (!variants.some((shown) => shown.kernel === kernel)) throw why;
  }
  return variants.sort((a, b) =>
    a.kernel < b.kernel ? -1 : a.kernel > b.kernel ? 1 : 0
  );
}

/** RADV's statistics of a kernel. */
export interface CompiledShader {
  /** Lanes of a wave. */
  wave: number;
  /** Keyed by RADV's names. */
  statistics: ReadonlyMap<string, number>;
}

/** A kernel on a chip. */
export interface RadvStatistics {
  kernel: string;
  /** The call. */
  label: string;
  /** The kernel's own constants: `BM=64 BN=64 …`. */
  constants: string;
  hot: boolean;
  chip: string;
  /** Lanes that the driver runs it with. */
  wave: number;
  /** Threads of a workgroup. */
  threads: number;
  /** Vector registers of a lane, in whole granules. */
  vgprs: number;
  spilledVgprs: number;
  spilledSgprs: number;
  /** Bytes of memory per wave for spilled registers. */
  scratch: number;
  /** Bytes of workgroup memory. */
  lds: number;
  /** Waves per SIMD for which there are enough registers and workgroup memory. */
  waves: number;
  codeBytes: number;
  /** The compiler's estimates in cycles; nothing was executed. */
  latency: number;
  inverseThroughput: number;
}

/** Threads per workgroup, from a kernel's WGSL. */
export function threadsOf(wgsl: string): number {
  const [, size] = /@workgroup_size\((\w+)\)/.exec(wgsl) ?? [];
  const value =
    new RegExp(`const ${size}(?:: u32)? = (\\d+)`).exec(wgsl)?.[1] ?? size;
  return Number(value);
}

/** The types of a kernel's bindings, in order, from its WGSL. */
export function bindingsOf(wgsl: string): Shader["types"] {
  const declared = wgsl.matchAll(
    /^@group\(0\) @binding\(\d+\) var(?:<([^>]*)>)? \w+: (\w+)/gm,
  );
  return [...declared].map(([, space, type]) =>
    space === "uniform"
      ? "uniform"
      : space === "storage, read"
      ? "read-only-storage"
      : type === "texture_2d"
      ? "texels"
      : "storage"
  );
}

/**
 * One row of the table.
 *
 * @throws {Error} if RADV lacks one of the statistics: other versions of Mesa may rename them.
 */
export function statisticsOf(
  { kernel, label, constants, wgsl }: Pick<
    Shown,
    "kernel" | "label" | "constants" | "wgsl"
  >,
  { name: chip, generation }: Chip,
  { wave, statistics }: CompiledShader,
): RadvStatistics {
  const of = (name: string): number => {
    const value = statistics.get(name);
    if (value === undefined) {
      throw new Error(
        `Cannot read RADV's statistics: there is no "${name}" among ${
          [...statistics.keys()].join(", ")
        }`,
      );
    }
    return value;
  };
  // From GFX10 on, RADV counts waves of 32, and a wave of 64 is two of them.
  const halves = wave === 64 && !/GFX[6-9]$/.test(generation) ? 2 : 1;
  return {
    kernel,
    label,
    constants: Object.entries(constants).map(([name, value]) =>
      `${name}=${value}`
    ).join(" "),
    hot: isHot(kernel),
    chip,
    wave,
    threads: threadsOf(wgsl),
    vgprs: of("VGPRs"),
    spilledVgprs: of("Spilled VGPRs"),
    spilledSgprs: of("Spilled SGPRs"),
    scratch: of("Scratch size"),
    lds: of("LDS size"),
    waves: of("Subgroups per SIMD") / halves,
    codeBytes: of("Code size"),
    latency: of("Latency"),
    inverseThroughput: of("Inverse Throughput"),
  };
}

/** Kernels that tokens wait for and that spill registers to memory. */
export function spilling(rows: readonly RadvStatistics[]): RadvStatistics[] {
  return rows.filter(({ hot, spilledVgprs, scratch }) =>
    hot && (spilledVgprs > 0 || scratch > 0)
  );
}

const COLUMNS: readonly [string, (row: RadvStatistics) => string | number][] = [
  ["chip", (row) => row.chip],
  ["wave", (row) => row.wave],
  ["threads", (row) => row.threads],
  ["VGPRs", (row) => row.vgprs],
  ["spills V/S", (row) => `${row.spilledVgprs}/${row.spilledSgprs}`],
  ["scratch", (row) => row.scratch],
  ["LDS", (row) => row.lds],
  ["waves", (row) => row.waves],
  ["code", (row) => row.codeBytes],
  ["latency", (row) => row.latency],
  ["1/throughput", (row) => row.inverseThroughput],
];

/** The rows as a table: each call with its constants, and below it a line for each chip. */
export function radvTable(rows: readonly RadvStatistics[]): string {
  const cells = (row: RadvStatistics) =>
    COLUMNS.map(([, cell]) => String(cell(row)));
  const all = [COLUMNS.map(([title]) => title), ...rows.map(cells)];
  const widths = COLUMNS.map((_, i) =>
    Math.max(...all.map((row) => row[i].length))
  );
  const line = (row: readonly string[]) =>
    `  ${
      row.map((cell, i) =>
        i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])
      ).join("  ")
    }`;
  const byCall = Map.groupBy(
    rows,
    ({ kernel, label, constants }) => `${kernel} ${label} ${constants}`,
  );
  return [
    line(all[0]),
    ...[...byCall].flatMap(([call, some]) => [
      ...wrap(call.trimEnd(), WIDTH, "", "    "),
      ...some.map((row) => line(cells(row))),
    ]),
  ].join("\n");
}
