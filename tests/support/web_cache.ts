/** A cache of web folders of its own for a test, in place of the user's. */
import { CACHE_DIR } from "../../lib/host.ts";

/** An empty cache until disposed. */
export async function emptyWebCache(): Promise<
  AsyncDisposable & { path: string }
> {
  const before = Deno.env.get(CACHE_DIR);
  const path = await Deno.realPath(await Deno.makeTempDir());
  Deno.env.set(CACHE_DIR, path);
  return {
    path,
    async [Symbol.asyncDispose]() {
      if (before === undefined) Deno.env.delete(CACHE_DIR);
      else Deno.env.set(CACHE_DIR, before);
      await Deno.remove(path, { recursive: true });
    },
  };
}
