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

/** Runs a process to its end. */
export async function outcomeOf(
  path: string | URL,
  options: Deno.CommandOptions,
): Promise<Outcome> {
  const { code, stdout, stderr } = await new Deno.Command(path, options)
    .output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** Runs Deno in the project's root as a process to its end. */
export const runDeno = (
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<Outcome> =>
  outcomeOf(Deno.execPath(), {
    args: [...args],
    cwd: new URL("../..", import.meta.url),
    env: { NO_COLOR: "1", ...env },
  });

/** Runs `tasks/NAME.ts` as a process to its end. */
export const runTask = (
  name: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<Outcome> => runDeno([...RUN, `tasks/${name}.ts`, ...args], env);
