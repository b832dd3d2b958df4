/**
 * What an adapter is: its name, and whose defaults the kernels take.
 *
 * @module
 */
import type { AdapterClass } from "../dispatch/capabilities.ts";

/** What an adapter calls itself. */
export function adapterName(
  { description, device, vendor }: GPUAdapterInfo,
): string {
  return description || device || vendor || "GPU";
}

/** 40 MB of L2 or more, as NVIDIA states them: fetching ahead needs the room. */
const LARGE_L2 =
  /\b(A100|A800|[HB][128]00|H20|GH200|L40S?|RTX (40[89]|50[89])0)\b/;

// PCI vendor ids, and those that Mesa's software renderers and Metal give instead.
const VENDORS: Readonly<Record<number, AdapterClass>> = {
  0x10de: "NVIDIA",
  0x1002: "AMD",
  0x1022: "AMD",
  0x8086: "Intel",
  0x106b: "Apple",
  0x10005: "software",
};
const NAMES: [RegExp, AdapterClass][] = [
  [/nvidia|geforce|quadro|tesla/i, "NVIDIA"],
  [/\bamd\b|radeon|radv/i, "AMD"],
  [/intel/i, "Intel"],
  [/apple/i, "Apple"],
];

/**
 * What kind an adapter is, by its vendor (a PCI id in Deno, a name elsewhere) or else
 * by what it calls itself.
 */
export function adapterClass(
  { vendor, description }: Pick<GPUAdapterInfo, "vendor" | "description">,
  software: boolean,
): AdapterClass {
  if (software) return "software";
  const named = NAMES.find(([name]) => name.test(`${vendor} ${description}`));
  const known = VENDORS[Number(vendor)] ?? named?.[1] ?? "other";
  const large = known === "NVIDIA" && LARGE_L2.test(description);
  return large ? "NVIDIA, large cache" : known;
}
