/** `deno task test` itself. */
import { assertEquals, assertMatch } from "@std/assert";
import { runTask } from "../support/run_task.ts";

Deno.test("tests do not see where deno task was started, and are counted", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const file = `${folder}/place_test.ts`;
    await Deno.writeTextFile(
      file,
      `Deno.test("good", () => {
         if (Deno.env.has("INIT_CWD")) throw new Error("it is set");
       });
       Deno.test("bad", () => { throw new Error("always"); });`,
    );
    const { code, stdout } = await runTask("test", ["--no-lock", file], {
      INIT_CWD: folder,
    });
    assertMatch(stdout, /^good \.{3} ok/m);
    assertEquals([code, stdout.trimEnd().split("\n").at(-1)], [
      1,
      "1 passed, 1 failed",
    ]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("files run in parallel, and those that set variables beside them", async () => {
  const folder = await Deno.makeTempDir();
  const write = (name: string, variable: string, text: string) =>
    Deno.writeTextFile(
      `${folder}/${name}_test.ts`,
      `Deno.test("${name}", () => { ${variable}; ${text} });`,
    );
  const has = 'if (Deno.env.has("SEEN")) throw new Error("it is set")';
  const set = 'Deno.env.set("SEEN", "1")';
  const flags = ["--parallel", "--no-lock", "--no-check", folder];
  try {
    await Deno.mkdir(`${folder}/inner`);
    await write("inner/sets", set, "console.log('shown');");
    await write("reads", has, "");
    const { code, stdout } = await runTask("test", flags);
    // What the second process printed follows the summary of the first.
    assertMatch(
      stdout,
      /reads \.{3} ok.*1 passed \| 0 failed.*shown.*inner\/sets \.{3} ok/s,
    );
    assertEquals([code, /\n2 passed, 0 failed\n$/.test(stdout)], [0, true]);
    for (const [name, variable] of [["inner/sets", set], ["reads", has]]) {
      await write("inner/sets", set, "");
      await write("reads", has, "");
      await write(name, variable, "throw new Error('always');");
      const { code, stdout } = await runTask("test", flags);
      assertMatch(stdout, new RegExp(`\\b${name} \\.{3} FAILED`));
      assertEquals([code, /\n1 passed, 1 failed\n$/.test(stdout)], [1, true]);
    }
    // A file that cannot be loaded, in either.
    for (const name of ["inner/sets", "reads"]) {
      await write("inner/sets", set, "");
      await write("reads", has, "");
      const text = await Deno.readTextFile(`${folder}/${name}_test.ts`);
      await Deno.writeTextFile(`${folder}/${name}_test.ts`, `${text} no`);
      const { code, stdout } = await runTask("test", flags);
      assertEquals([code, /\n1 passed, 1 failed\n$/.test(stdout)], [1, true]);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a flag that is nearly one of the task's is refused with that", async () => {
  for (
    const [flag, close] of [
      ["--sedes", "--seeds"],
      ["--seeds=3", "--seeds"],
      ["--quik", "--quick"],
      ["--all-case", "--all-cases"],
      ["--require-gpus", "--require-gpu"],
    ]
  ) {
    const { code, stdout, stderr } = await runTask("test", [flag, "3"]);
    assertEquals([code, stdout, stderr], [
      1,
      "",
      `error: Cannot run the tests: ${flag} is unknown, did you mean ${close}?\n`,
    ]);
  }
  // The runner's own flags reach it.
  const { stdout } = await runTask("test", [
    ...["--no-lock", "--quiet", "--seed=3", "--filter", "nothing"],
    "tests/tasks/test_test.ts",
  ]);
  assertMatch(stdout, /0 passed, 0 failed\n$/);
});
