const ROOT = new URL("../../", import.meta.url);

/** All code that `mod.ts` loads, kernels/, and the rest of lib/ except its tools. */
export async function productFiles(): Promise<string[]> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", "--config", "deno.json", "mod.ts"],
    cwd: ROOT,
  }).output();
  const { modules } = JSON.parse(new TextDecoder().decode(stdout)) as {
    modules: { specifier: string }[];
  };
  const files = modules.map(({ specifier }) => specifier)
    .filter((specifier) =>
      specifier.startsWith(ROOT.href) && /\.[jt]s$/.test(specifier)
    )
    .map((specifier) => specifier.slice(ROOT.href.length));
  const walk = async (folder: string) => {
    for await (
      const { name, isDirectory } of Deno.readDir(new URL(folder, ROOT))
    ) {
      const path = folder + name;
      if (path === "lib/tools") continue;
      if (isDirectory) await walk(`${path}/`);
      else if (name.endsWith(".ts")) files.push(path);
    }
  };
  await walk("lib/");
  await walk("kernels/");
  return [...new Set(files)].sort();
}
