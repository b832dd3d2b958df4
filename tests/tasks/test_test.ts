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
