/**
 * Identifies an adapter: its name, and the class that selects the kernels' defaults.
 *
 * @module
 */
import type { AdapterClass } from "../dispatch/capabilities.ts";

/** What an adapter is called. */
type AdapterNames =
  & Pick<GPUAdapterInfo, "vendor" | "description">
  & Partial<Pick<GPUAdapterInfo, "device" | "architecture">>;

/**
 * The name of an adapter. Dawn describes the driver and names the device in lower case,
 * with dashes; Deno describes the device and gives its PCI id. Browsers tell no more than the
 * vendor and the architecture.
 */
export function adapterName(
  { description, device = "", vendor, architecture = "" }: AdapterNames,
): string {
  const named = Number.isNaN(Number(device));
  return (named && device.replaceAll("-", " ").trim()) || description ||
    device || `${vendor} ${architecture}`.trim() || "GPU";
}

/** Whether an adapter is a software renderer (llvmpipe, SwiftShader, …). */
export const isSoftware = (
  info: AdapterNames & Pick<GPUAdapterInfo, "isFallbackAdapter">,
): boolean =>
  info.isFallbackAdapter ||
  /llvmpipe|swiftshader|software/i.test(adapterName(info));

/**
 * NVIDIA cards with 40 MB of L2 or more, which reading ahead needs (bench/log.md,
 * "Reading ahead").
 */
const LARGE_L2 =
  /\b(A100|A800|[HB][128]00|H20|GH200|L40S?|RTX (40[89]|50[89])0)\b/i;

// PCI vendor ids, and the ids of Mesa's software renderers and of Metal.
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
 * Classifies an adapter by its vendor (a PCI id in Deno, a name elsewhere), or failing
 * that by its name.
 */
export function adapterClass(
  info: AdapterNames,
  software: boolean,
): AdapterClass {
  if (software) return "software";
  const { vendor } = info, name = adapterName(info);
  const named = NAMES.find(([known]) => known.test(`${vendor} ${name}`));
  const known = VENDORS[Number(vendor)] ?? named?.[1] ?? "other";
  const large = known === "NVIDIA" && LARGE_L2.test(name);
  return large ? "NVIDIA, large cache" : known;
}
