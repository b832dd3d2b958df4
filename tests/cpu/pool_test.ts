import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { slowTest } from "../support/quick.ts";

/** A program that checks a matmul of several chunks, then prints the state of its threads. */
const program = (
  library: string,
  last: string,
  beforeInfo = "",
  threads = 3,
) => `
  import { CpuOps } from ${JSON.stringify(library)};
  import { matrixOf } from ${
  JSON.stringify(library.replace("cpu/ops.ts", "formats/matrix.ts"))
};
  const config = { numAttentionHeads: 2, numKeyValueHeads: 1, headDim: 16, rmsNormEps: 1e-6,
    ropeTheta: 1e4, ropeScaling: null };
  const ops = new CpuOps(config, { threads: ${threads} });
  const w = ops.tensor("bf16", [4000, 512]);
  w.data.fill(0x3f80);
  const x = ops.tensor("f32", [2, 512]);
  x.data.fill(1);
  for (const pause of [0, 300, 0]) {
    const y = ops.matmulAdd(x, matrixOf(w), ops.tensor("f32", [2, 4000]));
    if (!y.data.every((value) => value === 512)) throw new Error("wrong product");
    await new Promise((done) => setTimeout(done, pause));
  }
  ${beforeInfo}
  console.log(JSON.stringify(ops.info));
  ${last}
`;

/** Runs a program as a process, which must end on its own. */
async function run(source: string, ...flags: string[]) {
  const file = await Deno.makeTempFile({ suffix: ".ts" });
  try {
    await Deno.writeTextFile(file, source);
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--no-check",
        "--no-config",
        "--no-lock",
        "--no-prompt",
        ...flags,
        file,
      ],
      signal: AbortSignal.timeout(300_000), // ends a process that never would
    }).output();
    const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    assertEquals(code, 0, decode(stderr));
    return {
      info: JSON.parse(decode(stdout)),
      stderr: decode(stderr),
    };
  } finally {
    await Deno.remove(file);
  }
}

const LIBRARY = new URL("../../lib/cpu/ops.ts", import.meta.url).href;

Deno.test("a process ends once its pool is disposed", async () => {
  const { info } = await run(
    program(LIBRARY, "ops[Symbol.dispose]();"),
    "--allow-read",
  );
  assertEquals(info.threads, 3);
});

Deno.test("threads without work sleep", async () => {
  const threads = 9; // polling, they would take all cores, however busy those are
  const rest = `
    import { cpuUsage } from "node:process";
    await new Promise((done) => setTimeout(done, 300));
    const began = performance.now(), before = cpuUsage();
    await new Promise((done) => setTimeout(done, 300));
    const { user, system } = cpuUsage(before), ms = performance.now() - began;
    console.log(JSON.stringify({ threads: ops.info.threads, share: (user + system) / 1000 / ms }));
    Deno.exit();
  `;
  const { info } = await run(
    program(LIBRARY, "", rest, threads),
    "--allow-read",
  );
  assertEquals(info.threads, threads);
  assert(info.share < 0.3, `${info.share} of a core`);
});

slowTest("a process ends without disposing its pool", async () => {
  const { info, stderr } = await run(program(LIBRARY, ""), "--allow-read");
  assertEquals(info.threads, 3);
  assertEquals(stderr, "");
});

Deno.test("without permission to read, the caller works alone and says so", async () => {
  const wait =
    "while (ops.info.threads > 1) await new Promise((done) => setTimeout(done, 20));";
  const { info } = await run(program(LIBRARY, "ops[Symbol.dispose]();", wait));
  assertEquals(info.threads, 1);
  assertStringIncludes(info.reason, "one thread, because workers failed: ");
});

Deno.test("workers start when the library was imported from a URL", async () => {
  const worker = Promise.withResolvers<void>();
  await using server = Deno.serve({
    port: 0,
    hostname: "127.0.0.1",
    onListen() {},
  }, async (request) => {
    const { pathname } = new URL(request.url);
    if (pathname === "/worker-asked") {
      await worker.promise;
      return new Response();
    }
    if (pathname === "/lib/cpu/worker.ts") worker.resolve();
    const file = await Deno.readTextFile(
      new URL(`../..${pathname}`, import.meta.url),
    );
    return new Response(file, {
      headers: { "content-type": "application/typescript" },
    });
  });
  const host = `127.0.0.1:${server.addr.port}`;
  const { info } = await run(
    program(
      `http://${host}/lib/cpu/ops.ts`,
      "ops[Symbol.dispose]();",
      `await (await fetch("http://${host}/worker-asked")).text();`,
    ),
    `--allow-import=${host}`,
    `--allow-net=${host}`,
    "--reload",
  );
  assertEquals(info.threads, 3);
});
