import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  askDawn,
  compareOffers,
  type Offer,
  offerOf,
} from "../../../lib/tools/doctor/implementations.ts";
import { type Finding, findingText } from "../../../lib/tools/doctor/report.ts";
import { gpuTest } from "../../support/gpu.ts";
import { runTask } from "../../support/run_task.ts";

const DENO: Offer = {
  adapter: "NVIDIA H200",
  features: ["f16", "timestamps", "subgroups"],
  compiler: "naga",
  maxBuffer: 2 ** 32,
  maxBinding: 2 ** 31,
  readbackMs: 11.02,
};
const DAWN: Offer = {
  ...DENO,
  adapter: "nvidia h200",
  features: ["timestamps", "subgroups", "subgroup matrices"],
  compiler: "tint",
  readbackMs: 0.0491,
};

function compared(
  ...args: [
    Parameters<typeof compareOffers>[0],
    boolean,
  ]
): Finding[] {
  const found: Finding[] = [];
  compareOffers(...args, { found: (finding) => found.push(finding) });
  for (const line of found.map(findingText).join("\n").split("\n")) {
    assert(line.length <= 100, line);
  }
  return found;
}

Deno.test("the implementations stand side by side, with what either lacks", () => {
  for (const asked of [true, false]) {
    const found = compared({ deno: DENO, dawn: DAWN }, asked);
    assertEquals(found.map(({ topic, severity }) => [topic, severity]), [
      ...Array(3).fill(["WebGPU", "green"]),
    ]);
    const [deno, dawn, lacks] = found.map(({ text }) => text);
    assertEquals(
      deno,
      "deno: NVIDIA H200, f16, timestamps, subgroups, compiles with naga, binds 2.1 GB, reads back in 11.0 ms",
    );
    assertMatch(dawn, /^dawn: nvidia h200, .* reads back in 0\.049 ms/);
    assertEquals(/; --webgpu dawn uses it$/.test(dawn), !asked);
    assertEquals(lacks, "deno lacks subgroup matrices; dawn lacks f16");
  }
  assertEquals(
    compared({ deno: DENO, dawn: DENO }, true)[2].text,
    "deno and dawn have the same features",
  );
});

Deno.test("Dawn that is not there is a problem only if it was asked for", () => {
  const dawn = { error: "no WebGPU adapter here" };
  for (const asked of [true, false]) {
    const found = compared({ deno: DENO, dawn }, asked);
    assertEquals(found.length, 2);
    assertEquals(found[1].severity, asked ? "red" : "green");
    assertEquals(found[1].text, "dawn: no WebGPU adapter here");
  }
  assertEquals(compared({ deno: undefined, dawn }, false).length, 1);
  const [deno] = compared({ deno: dawn, dawn: DAWN }, true);
  assertEquals(deno.severity, "green"); // it was not asked for
});

Deno.test({
  name: "deno task doctor --webgpu dawn fails without Dawn, and says why",
  ignore: Deno.build.os !== "linux", // no variable hides drivers elsewhere
  async fn() {
    const args = ["--webgpu", "dawn", "--json"];
    const { code, stdout } = await runTask("doctor", args, {
      VK_DRIVER_FILES: "/none",
    });
    const { findings } = JSON.parse(stdout) as { findings: Finding[] };
    const problems = findings.filter(({ severity }) => severity === "red");
    assertEquals(code, 1);
    assertEquals(
      problems.map(({ topic, text }) => `${topic}: ${text}`),
      ["WebGPU: dawn: Dawn supports no adapter here"],
    );
  },
});

Deno.test("Dawn is not downloaded unless it was asked for", async () => {
  const before = Deno.env.get("DENO_DIR");
  const empty = await Deno.makeTempDir();
  Deno.env.set("DENO_DIR", empty);
  try {
    const offer = await askDawn(false);
    assertEquals(offer, {
      error: "not here yet; --webgpu dawn downloads it, 132 MB",
    });
    const packages = `${empty}/npm/registry.npmjs.org`;
    const names: string[] = await Array.fromAsync(
      Deno.readDir(packages),
      ({ name }) => name,
    ).catch(() => []);
    assert(!names.includes("webgpu"), names.join());
  } finally {
    if (before === undefined) Deno.env.delete("DENO_DIR");
    else Deno.env.set("DENO_DIR", before);
    await Deno.remove(empty, { recursive: true });
  }
});

gpuTest("an offer is what the device has", async (gpu) => {
  const offer = await offerOf(gpu);
  assertEquals(offer.adapter, gpu.name);
  assertEquals(offer.features.includes("f16"), gpu.f16);
  assertEquals(offer.features.includes("subgroups"), gpu.subgroupSize > 0);
  assertEquals(offer.features.includes("subgroup matrices"), false);
  assert(offer.readbackMs > 0);
});
