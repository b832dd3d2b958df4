/** `deno task test --quick` skips slow tests, and all GPU tests except one per kernel. */

/** Whether this is a quick run. */
export const QUICK = Deno.env.get("QWEN3_TEST_QUICK") === "1";

/** Registers a test without a GPU that takes seconds. */
export function slowTest(name: string, fn: () => void | Promise<void>): void {
  Deno.test({ name, ignore: QUICK, fn });
}
