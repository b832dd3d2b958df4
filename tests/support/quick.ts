/** What `deno task test --quick` leaves out: GPU tests, but for one per kernel, and slow ones. */

/** Whether only quick tests run. */
export const QUICK = Deno.env.get("QWEN3_TEST_QUICK") === "1";

/** Registers a test that needs no GPU, but seconds. */
export function slowTest(name: string, fn: () => void | Promise<void>): void {
  Deno.test({ name, ignore: QUICK, fn });
}
