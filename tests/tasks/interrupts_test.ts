import { assertEquals } from "@std/assert";
import { RUN } from "../support/run_task.ts";

const { href } = new URL("../../tasks/interrupts.ts", import.meta.url);
const SCRIPT = `
import { cleanOnSignal } from "${href}";
const say = (text) => Deno.stdout.writeSync(new TextEncoder().encode(text));
using _first = cleanOnSignal(() => say("first "));
using _wrong = cleanOnSignal(() => { throw new Error("it is gone"); });
using _last = cleanOnSignal(() => say("last"));
cleanOnSignal(() => say("disposed"))[Symbol.dispose]();
say("ready ");
await new Promise((resolve) => setTimeout(resolve, 1e6));
`;

for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
  Deno.test({
    name: `${signal} cleans up everything that is left, and ends with ${code}`,
    ignore: Deno.build.os === "windows",
    fn: async () => {
      const file = await Deno.makeTempFile({ suffix: ".ts" });
      await Deno.writeTextFile(file, SCRIPT);
      await using child = new Deno.Command(Deno.execPath(), {
        args: [...RUN, file],
        stdout: "piped",
        stderr: "inherit",
      }).spawn();
      let text = "";
      for await (
        const part of child.stdout.pipeThrough(new TextDecoderStream())
      ) {
        text += part;
        if (text === "ready ") child.kill(signal);
      }
      assertEquals(text, "ready first last");
      assertEquals((await child.status).code, code);
      await Deno.remove(file);
    },
  });
}
