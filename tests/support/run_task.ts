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

const ROOT = new URL("../../", import.meta.url);

/** Runs `tasks/NAME.ts` as a process to its end, in the root or another folder. */
export async function runTask(
  name: string,
  args: readonly string[],
  env: Record<string, string> = {},
  cwd: string | URL = ROOT,
): Promise<Outcome> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [...RUN, new URL(`tasks/${name}.ts`, ROOT).href, ...args],
    cwd,
    env: { NO_COLOR: "1", ...env },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}
