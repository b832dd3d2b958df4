/** Deno as on another machine: with an empty cache, in an empty folder, without configuration. */
import { type Outcome, outcomeOf } from "./run_task.ts";

/** An empty folder with a Deno cache of its own. */
export interface CleanDeno extends AsyncDisposable {
  folder: string;
  /** Runs a program, `deno` or one below the folder, to its end. */
  run(
    program: string,
    args: readonly string[],
    env?: Record<string, string>,
  ): Promise<Outcome>;
}

/** Makes the folder. Only npm packages are those of the machine's own cache. */
export async function cleanDeno(): Promise<CleanDeno> {
  const folder = await Deno.realPath(await Deno.makeTempDir());
  await Deno.mkdir(`${folder}/cache`);
  await Deno.symlink(await npmCache(), `${folder}/cache/npm`);
  return {
    folder,
    run(program, args, env = {}) {
      const path = program === "deno"
        ? Deno.execPath()
        : `${folder}/${program}`;
      return outcomeOf(path, {
        args: [...args],
        cwd: folder,
        env: { DENO_DIR: `${folder}/cache`, NO_COLOR: "1", ...env },
      });
    },
    [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
  };
}

/** Where Deno keeps npm packages on this machine. */
async function npmCache(): Promise<string> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", "--no-config"],
  }).output();
  const path: string = JSON.parse(new TextDecoder().decode(stdout)).npmCache;
  await Deno.mkdir(path, { recursive: true });
  return path;
}
