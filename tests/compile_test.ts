/** `deno compile` of a script that imports mod.ts. */
import { assert, assertEquals } from "@std/assert";
import { loadQwen3 } from "../mod.ts";
import { QUICK } from "./support/quick.ts";

const ROOT = new URL("../", import.meta.url);
const PROMPT = "Once upon a time", TOKENS = 24;
/** What a program must be given: it is read, not imported. */
const INCLUDED = ["models/stories-3m", "lib/cpu/worker.ts"];

/**
 * The runtime that `deno compile` puts a program into. Deno downloads it, or takes the one
 * that this variable names.
 */
const RUNTIME = Deno.env.get("DENORT_BIN");

/** Compiles a script in an empty folder; returns the program's path. */
async function compile(folder: string, runtime: string): Promise<string> {
  await Deno.writeTextFile(
    `${folder}/main.ts`,
    `import { loadQwen3 } from ${JSON.stringify(new URL("mod.ts", ROOT).href)};
     using qwen = await loadQwen3(undefined, { device: "cpu" });
     const options = { temperature: 0, maxTokens: ${TOKENS} };
     const { tokenIds } = await qwen.generate(${
      JSON.stringify(PROMPT)
    }, options);
     console.log(JSON.stringify({ tokenIds, adapter: qwen.device.adapter }));`,
  );
  const program = `${folder}/program`;
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["compile", "-A", "--no-check", "--no-config", "--quiet"],
      ...INCLUDED.flatMap((
        path,
      ) => ["--include", new URL(path, ROOT).pathname]),
      ...["--output", program, `${folder}/main.ts`],
    ],
    cwd: folder,
    env: { DENORT_BIN: runtime, NO_COLOR: "1" },
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  return program;
}

/** Where bytes are in others, from `begin` on; -1 if they are not there. */
function indexOf(all: Uint8Array, part: Uint8Array, begin: number): number {
  for (let at = begin; (at = all.indexOf(part[0], at)) >= 0; at++) {
    if (part.every((byte, i) => all[at + i] === byte)) return at;
  }
  return -1;
}

Deno.test({
  name:
    "a compiled program holds the story model and the script of CPU threads",
  ignore: QUICK,
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      const deno = Deno.execPath(); // stands in for the runtime, which is not run here
      const program = await Deno.readFile(await compile(folder, deno));
      const { size } = await Deno.stat(deno);
      for (
        const name of [
          "models/stories-3m/model.safetensors",
          "models/stories-3m/tokenizer.json",
          "lib/cpu/worker.ts",
        ]
      ) {
        const file = await Deno.readFile(new URL(name, ROOT));
        const at = indexOf(program, file.subarray(0, 400), size);
        assert(at > size, `${name} is not in the program`);
        assertEquals(
          program.subarray(at, at + file.length).every((byte, i) =>
            byte === file[i]
          ),
          true,
        );
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});

// Only where a runtime can be had: registries of packages have none.
if (RUNTIME !== undefined) {
  Deno.test({
    name: "a compiled program generates what the script does, from any folder",
    ignore: QUICK,
    async fn() {
      using qwen = await loadQwen3(undefined, { device: "cpu" });
      const options = { temperature: 0, maxTokens: TOKENS };
      const { tokenIds } = await qwen.generate(PROMPT, options);
      const folder = await Deno.makeTempDir();
      try {
        const program = await compile(folder, RUNTIME);
        const { stdout, stderr } = await new Deno.Command(program, { cwd: "/" })
          .output();
        const text = new TextDecoder();
        assertEquals(text.decode(stderr), "");
        const said = JSON.parse(text.decode(stdout));
        assertEquals(said.tokenIds, tokenIds);
        assertEquals(said.adapter, qwen.device.adapter);
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
    },
  });
}
