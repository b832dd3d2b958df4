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

Deno.test("a flag that is nearly one of the task's is refused with that", async () => {
  for (
    const [flag, close] of [
      ["--sedes", "--seeds"],
      ["--seeds=3", "--seeds"],
      ["--quik", "--quick"],
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
