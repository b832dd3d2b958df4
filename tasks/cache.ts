/**
 * Show what models that were read from web folders left in the cache, and clear it.
 *
 *   deno task cache
 *   deno task cache --clear https://example.com/model/
 *   deno task cache --clear
 *
 * The list is on stdout: size, date of the last use, URL (without user and query). The
 * cache of the Hugging Face Hub is shared with other programs: its size is shown, it is
 * never cleared here (`hf cache` does that). `--json` prints one line instead:
 *
 *   {"folder", "bytes", "web": [{"url", "folder", "bytes", "used"}], "hub": {"folder",
 *    "bytes"}}, or with --clear {"folder", "bytes", "removed": [as "web"]}
 */
import { errorText, printable } from "../lib/errors.ts";
import { cacheFolder } from "../lib/checkpoint/hub_access.ts";
import { shownUrl } from "../lib/checkpoint/fetch.ts";
import { bytesText } from "../lib/checkpoint/sources.ts";
import {
  folderBytes,
  type KeptFolder,
  listWebCache,
  removeKept,
  webCacheFolder,
} from "../lib/checkpoint/web_cache.ts";
import { asTyped } from "./command.ts";
import { type FlagTable, runTask } from "./flags.ts";

const FLAGS: FlagTable = {
  "clear": ["switch", "remove the copies of one URL or, without one, of all"],
  "json": ["switch", "print one line of JSON instead"],
};

await runTask({
  usage: "deno task cache [--clear] [URL]",
  flags: FLAGS,
  notes:
    `Only copies of web folders are cleared, never the cache of the Hugging Face Hub.
They are below ~/.cache/qwen3-webgpu, or below QWEN3_CACHE_DIR.`,
}, async (flags) => {
  const [url, ...more] = flags.words, json = flags.on("json");
  if (more.length > 0) {
    throw new Error(
      `Cannot show the cache of ${flags.words.length} URLs: give one or none`,
    );
  }
  const folder = webCacheFolder();
  const all = await listWebCache();
  const web = url === undefined ? all : all.filter((kept) => isOf(kept, url));
  if (url !== undefined && web.length === 0) {
    throw new Error(
      `Cannot find ${
        printable(shownUrl(url))
      } in the cache: deno task cache lists what is kept`,
    );
  }
  const bytes = web.reduce((sum, kept) => sum + kept.bytes, 0);
  if (flags.on("clear")) {
    for (const kept of web) await removeKept(kept);
    console.log(
      json
        ? JSON.stringify({ folder, bytes, removed: web })
        : `${bytesText(bytes)} freed in ${folder} (${counted(web.length)})`,
    );
    return 0;
  }
  const hub = await hubCache();
  if (json) {
    console.log(JSON.stringify({ folder, bytes, web, hub }));
    return 0;
  }
  for (const kept of web) {
    const { url = kept.folder, used = "?" } = kept;
    const size = bytesText(kept.bytes).padStart(7);
    console.log(`${size}  ${used.padEnd(10)}  ${printable(url)}`);
  }
  console.log(`${bytesText(bytes)} in ${folder} (${counted(web.length)})`);
  if (web.length > 0) {
    console.log(asTyped("deno task cache --clear [URL] removes them."));
  }
  console.log(
    "error" in hub
      ? hub.error
      : `${bytesText(hub.bytes)} in ${hub.folder} (Hugging Face Hub)`,
  );
  return 0;
});

/** Whether these are the copies of a URL, with or without the slash at its end. */
function isOf({ url, folder }: KeptFolder, asked: string): boolean {
  const { origin, pathname } = URL.parse(asked) ?? { origin: "", pathname: "" };
  const plain = `${origin}${pathname}`.replace(/\/?$/, "/");
  return url === plain || folder === asked;
}

function counted(folders: number): string {
  return folders === 1 ? "1 web folder" : `${folders} web folders`;
}

/** Where the Hub's cache is and what it takes, or why that is unknown. */
async function hubCache(): Promise<
  { folder: string; bytes: number } | { error: string }
> {
  try {
    const folder = cacheFolder();
    return { folder, bytes: await folderBytes(folder) };
  } catch (error) {
    return { error: errorText(error) };
  }
}
