/**
 * Deno's own WebGPU and Dawn on this machine, side by side. Dawn runs in a process of its
 * own, since a driver may crash it, and is downloaded only if it was asked for.
 *
 *   deno run -A lib/tools/doctor/implementations.ts   # prints Dawn's part as JSON
 *
 * @module
 */
import { openDevice } from "../../device/open_device.ts";
import { errorText } from "../../errors.ts";
import { Tensor } from "../../webgpu/tensor.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { prepareEnvironment } from "../../webgpu/environment.ts";
import type { AdapterName, WebGpuName } from "../../webgpu/implementation.ts";
import { bytes, significant } from "../format.ts";
import type { Reporter } from "./report.ts";

/** What an implementation offers on an adapter, as JSON. */
export interface Offer {
  adapter: string;
  /** What it has, in words, such as `f16`. */
  features: string[];
  compiler: string;
  maxBuffer: number;
  maxBinding: number;
  /** The median of readbacks of one word. */
  readbackMs: number;
}

/** Readbacks whose median is taken. */
const READBACKS = 5;

/** Describes an open device. */
export async function offerOf(gpu: Gpu): Promise<Offer> {
  using word = Tensor.create(gpu, "u32", [4]);
  const times: number[] = [];
  for (let i = 0; i < READBACKS; i++) {
    const began = performance.now();
    await word.read();
    times.push(performance.now() - began);
  }
  const features = {
    "f16": gpu.f16,
    "timestamps": gpu.timestamps,
    "subgroups": gpu.subgroupSize > 0,
    "subgroup matrices": gpu.subgroupMatrices.length > 0,
    "readback while later work runs": gpu.readsApart,
  };
  return {
    adapter: gpu.name,
    features: Object.entries(features).flatMap(([name, there]) =>
      there ? [name] : []
    ),
    compiler: gpu.compiler,
    maxBuffer: gpu.limits.maxBufferSize,
    maxBinding: gpu.limits.maxStorageBufferBindingSize,
    readbackMs: times.sort((a, b) => a - b)[READBACKS >> 1],
  };
}

/** What Dawn offers; an error if it is not there. */
export type DawnOffer = Offer | { error: string };

/** Asks Dawn in another process, which downloads it only if `asked`. */
export async function askDawn(
  asked: boolean,
  adapter?: AdapterName,
): Promise<DawnOffer> {
  const { code, signal, stdout, stderr } = await new Deno.Command(
    Deno.execPath(),
    {
      args: [
        ...["run", "-A", "--no-config", ...(asked ? [] : ["--cached-only"])],
        ...[import.meta.url, JSON.stringify({ adapter })],
      ],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    },
  ).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  const line = text(stdout).split("\n").find((line) => line.startsWith("{"));
  if (line !== undefined) return JSON.parse(line);
  const last = text(stderr).split("\n").at(-1);
  return { error: `its process ended with ${signal ?? code}: ${last}` };
}

/** Reports both implementations, and what either lacks. */
export function compareOffers(
  offers: Readonly<Partial<Record<WebGpuName, DawnOffer>>>,
  asked: boolean,
  reporter: Reporter,
): void {
  const topic = "WebGPU", { deno, dawn } = offers;
  for (const [name, offer] of Object.entries({ deno, dawn })) {
    if (offer === undefined) continue;
    const missing = "error" in offer, isDawn = name === "dawn";
    const advised = isDawn && !missing && !asked;
    reporter.found({
      severity: isDawn && missing && asked ? "red" : "green",
      topic,
      text: `${name}: ${offerText(offer)}${
        advised ? "; --webgpu dawn uses it" : ""
      }`,
      data: { webgpu: name, ...offer },
    });
  }
  if (!deno || !dawn || "error" in deno || "error" in dawn) return;
  const lacks = (name: string, one: Offer, other: Offer) => {
    const missing = other.features.filter((what) =>
      !one.features.includes(what)
    );
    return missing.length ? [`${name} lacks ${missing.join(", ")}`] : [];
  };
  const text =
    [...lacks("deno", deno, dawn), ...lacks("dawn", dawn, deno)].join("; ") ||
    "deno and dawn have the same features";
  reporter.found({ severity: "green", topic, text });
}

function offerText(offer: DawnOffer): string {
  if ("error" in offer) return offer.error;
  const { adapter, features, compiler, maxBinding, readbackMs } = offer;
  return [
    adapter,
    ...features,
    `compiles with ${compiler}`,
    `binds ${bytes(maxBinding)}`,
    `reads back in ${significant(readbackMs)} ms`,
  ].join(", ");
}

if (import.meta.main) {
  prepareEnvironment();
  let offer: DawnOffer;
  try {
    const { adapter } = JSON.parse(Deno.args[0] ?? "{}");
    using gpu = await openDevice({ webgpu: "dawn", adapter });
    offer = await offerOf(gpu);
  } catch (error) {
    const text = errorText(error).replace("Cannot open a GPU: ", "");
    offer = {
      error: /--cached-only/.test(text)
        ? "not here yet; --webgpu dawn downloads it, 132 MB"
        : text.split("; ")[0],
    };
  }
  console.log(JSON.stringify(offer));
}
