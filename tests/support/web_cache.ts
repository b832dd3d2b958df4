/** A cache of web folders of its own for a test, in place of the user's. */
import { CACHE_DIR, host, useHost } from "../../lib/host.ts";

/** An empty cache until disposed. */
export async function emptyWebCache(): Promise<
  AsyncDisposable & { path: string }
> {
  const path = await Deno.realPath(await Deno.makeTempDir());
  const { env } = host;
  // Not in the environment, which tests in other files may share.
  const using = useHost({
    ...host,
    env: (name) => name === CACHE_DIR ? path : env(name),
  });
  return {
    path,
    async [Symbol.asyncDispose]() {
      using[Symbol.dispose]();
      await Deno.remove(path, { recursive: true });
    },
  };
}
