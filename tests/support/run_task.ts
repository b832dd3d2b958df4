/** The outcome of a task. */
export interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

/**
 * How tests run a task: without the lockfile. With it, Deno first wants every package of
 * every test, and fails on a machine without network that lacks one.
 */
export const RUN: readonly string[] = ["run", "-A", "--no-check", "--no-lock"];

/** Runs `tasks/NAME.ts` as a process to its end. */
export async function runTask(
  name: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<Outcome> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [...RUN, `tasks/${name}.ts`, ...args],
    cwd: new URL("../..", import.meta.url),
    env: { NO_COLOR: "1", ...env },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}
