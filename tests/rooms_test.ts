/**
 * The import rules of ARCHITECTURE.md: which folder may import which, over all imports,
 * type-only and dynamic ones included.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";

const ROOT = new URL("../", import.meta.url);

/** One import: `from` → `to`, both relative to the root. */
interface Arrow {
  from: string;
  to: string;
  dynamic: boolean;
}

/** Files of lib/ that anything may import, because they import nothing of ours. */
const LEAVES = "leaves";
/** Files at the top of lib/: the entry points for mod.ts, the tasks and the tools. */
const DOORS = "doors";

/** The rooms that each room may import, in addition to itself. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  [LEAVES]: [],
  "lib/formats": [LEAVES],
  "lib/dispatch": [LEAVES, "lib/formats"],
  "lib/checkpoint": [LEAVES, "lib/formats", "lib/model"],
  "lib/text": [LEAVES, "lib/checkpoint"],
  "lib/model": [LEAVES, "lib/formats", "lib/dispatch", "lib/checkpoint"],
  "lib/webgpu": [LEAVES, "lib/formats", "lib/dispatch"],
  "kernels": [LEAVES, "lib/formats", "lib/dispatch", "lib/webgpu"],
  "lib/cpu": [
    LEAVES,
    "lib/formats",
    "lib/dispatch",
    "lib/checkpoint",
    "lib/model",
  ],
  "lib/device": [
    LEAVES,
    "lib/formats",
    "lib/dispatch",
    "lib/checkpoint",
    "lib/text",
    "lib/webgpu",
    "lib/cpu",
    "kernels",
  ],
  "lib/engine": [
    LEAVES,
    "lib/formats",
    "lib/dispatch",
    "lib/checkpoint",
    "lib/model",
    "lib/text",
    DOORS,
  ],
  "lib/gpu": [
    LEAVES,
    "lib/formats",
    "lib/dispatch",
    "lib/checkpoint",
    "lib/model",
    "lib/webgpu",
    "kernels",
  ],
  // The outermost room: nothing but mod.ts and the tasks imports it.
  "lib/server": [LEAVES, DOORS, "lib/text", "lib/engine"],
};

/** Rooms that may import anything: nothing of the product imports them. */
const INSTRUMENTS = ["lib/check", "lib/debug", "lib/tools", "tasks", "bench"];

const LEAF_FILES = ["dtype", "errors", "fmix32", "host", "json"];

function roomOf(file: string): string {
  const [top, name, ...rest] = file.split("/");
  if (top !== "lib") return name === undefined ? DOORS : top;
  if (name === "host") return LEAVES; // its folder has one file for each runtime
  if (rest.length > 0) return `lib/${name}`;
  return LEAF_FILES.includes(name.replace(/\.ts$/, "")) ? LEAVES : DOORS;
}

/** All files of the project that are code, without its tests. */
async function sources(folder: string): Promise<string[]> {
  const found: string[] = [];
  for await (
    const { name, isDirectory } of Deno.readDir(new URL(folder, ROOT))
  ) {
    if (isDirectory) {
      found.push(...await sources(`${folder}${name}/`));
    } else if (name.endsWith(".ts")) found.push(folder + name);
  }
  return found;
}

interface Dependency {
  specifier: string;
  code?: { specifier?: string };
  type?: { specifier?: string };
  isDynamic?: boolean;
}

/** Every import between the files that `root` reaches, as Deno resolves it. */
async function arrowsFrom(root: string): Promise<Arrow[]> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", "--config", "deno.json", root],
    cwd: ROOT,
    stderr: "piped",
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  const { modules } = JSON.parse(new TextDecoder().decode(stdout)) as {
    modules: { specifier: string; dependencies?: Dependency[] }[];
  };
  const local = (specifier = "") =>
    specifier.startsWith(ROOT.href)
      ? specifier.slice(ROOT.href.length)
      : undefined;
  return modules.flatMap(({ specifier, dependencies = [] }) => {
    const from = local(specifier);
    if (from === undefined) return [];
    return dependencies.flatMap(({ code, type, isDynamic = false }) => {
      const to = local(code?.specifier ?? type?.specifier);
      return to === undefined ? [] : [{ from, to, dynamic: isDynamic }];
    });
  });
}

async function everyArrow(): Promise<Arrow[]> {
  const files = ["mod.ts"];
  for (const folder of ["lib/", "kernels/", "tasks/", "bench/"]) {
    files.push(...await sources(folder));
  }
  // The command takes one root, so a file in a temporary folder imports them all.
  const folder = await Deno.makeTempDir();
  const root = `${folder}/all.ts`;
  await Deno.writeTextFile(
    root,
    files.map((file) => `import ${JSON.stringify(new URL(file, ROOT).href)};\n`)
      .join(""),
  );
  try {
    return await arrowsFrom(root);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const all = await everyArrow();
const show = ({ from, to, dynamic }: Arrow) =>
  `${from} ${dynamic ? "- import() ->" : "->"} ${to}`;

/** The first cycle that a search of `arrows` finds, as its arrows. */
function circle(arrows: readonly Arrow[]): Arrow[] | undefined {
  const from = Map.groupBy(arrows, (arrow) => arrow.from);
  const done = new Set<string>(), path: Arrow[] = [];
  const visit = (file: string): Arrow[] | undefined => {
    const begin = path.findIndex((arrow) => arrow.from === file);
    if (begin >= 0) return path.slice(begin);
    if (done.has(file)) return undefined;
    for (const arrow of from.get(file) ?? []) {
      path.push(arrow);
      const found = visit(arrow.to);
      if (found) return found;
      path.pop();
    }
    done.add(file);
    return undefined;
  };
  for (const file of from.keys()) {
    const found = visit(file);
    if (found) return found;
  }
  return undefined;
}

/** Arrows that the table does not allow. */
function forbidden(arrows: readonly Arrow[]): Arrow[] {
  return arrows.filter((arrow) => {
    const from = roomOf(arrow.from), to = roomOf(arrow.to);
    if (from === to || INSTRUMENTS.includes(from)) return false;
    if (from === DOORS) {
      return INSTRUMENTS.includes(to) &&
        !(arrow.dynamic && to === "lib/debug");
    }
    return !MAY_IMPORT[from]?.includes(to);
  });
}

Deno.test("no file imports itself through others, not even for types", () => {
  assert(all.length > 500, `only ${all.length} imports were found`);
  const found = circle(all);
  assertEquals(found?.map(show), undefined);
});

Deno.test("a cycle is found, also through types and import()", () => {
  const arrow = (from: string, to: string, dynamic = false) => ({
    from,
    to,
    dynamic,
  });
  const found = circle([
    arrow("a", "b"),
    arrow("b", "c"),
    arrow("c", "d", true),
    arrow("d", "b"),
  ]);
  assertEquals(found?.map(show), ["b -> c", "c - import() -> d", "d -> b"]);
});

Deno.test("each room imports only the rooms that it may", () => {
  assertEquals(forbidden(all).map(show), []);
});

Deno.test("a forbidden import is found", () => {
  const arrows = [
    ["lib/checkpoint/open.ts", "lib/webgpu/device.ts"],
    ["lib/webgpu/plan.ts", "lib/model/ops.ts"],
    ["lib/model/qwen3.ts", "lib/gpu/ops.ts"],
    ["lib/dispatch/tuned.ts", "kernels/gemv.ts"],
    ["lib/load.ts", "lib/tools/show.ts"],
    ["lib/errors.ts", "lib/load.ts"],
  ].map(([from, to]) => ({ from, to, dynamic: false }));
  assertEquals(forbidden(arrows), arrows);
});

Deno.test("generating text loads no instrument that is not asked for", async () => {
  const reached = new Set(["tasks/generate.ts"]);
  const arrows = await arrowsFrom("tasks/generate.ts");
  for (const file of reached) {
    for (const { from, to, dynamic } of arrows) {
      if (from === file && !dynamic) reached.add(to);
    }
  }
  assert(reached.has("lib/load.ts"));
  const instruments = [...reached].filter((file) =>
    roomOf(file) !== "tasks" && INSTRUMENTS.includes(roomOf(file))
  );
  assertEquals(instruments, []);
});

Deno.test("lib has at most 24 entries", async () => {
  const names = (await Array.fromAsync(Deno.readDir(new URL("lib/", ROOT))))
    .map(({ name }) => name);
  assert(names.length <= 24, `${names.length}: ${names.join(", ")}`);
});
