/** Functions of the product have at most 80 lines, or are listed in ARCHITECTURE.md. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { productFiles } from "./support/product_files.ts";

const ROOT = new URL("../", import.meta.url);
const MOST_LINES = 80;
const MOST_EXCEPTIONS = 5;

/** A function, named like `lib/gpu/ops.ts attend`. */
interface Measured {
  name: string;
  lines: number;
}

/** Every function of a file that has a body, by the syntax tree of Deno's linter. */
function functionsOf(file: string, text: string): Measured[] {
  const found: Measured[] = [];
  const measure = (node: Deno.lint.Node, name = "anonymous") => {
    const lines = text.slice(...node.range).split("\n").length;
    found.push({ name: `${file} ${name}`, lines });
  };
  type Callback =
    | Deno.lint.FunctionExpression
    | Deno.lint.ArrowFunctionExpression;
  const expression = (node: Callback) => {
    const { parent } = node;
    const named = parent.type === "VariableDeclarator"
      ? parent.id
      : parent.type === "MethodDefinition" || parent.type === "Property" ||
          parent.type === "PropertyDefinition"
      ? parent.key
      : undefined;
    const name = named && "name" in named ? String(named.name) : undefined;
    // A method is measured with its name and modifiers.
    measure(parent.type === "MethodDefinition" ? parent : node, name);
  };
  Deno.lint.runPlugin(
    {
      name: "function-length",
      rules: {
        measure: {
          create: () => ({
            FunctionDeclaration: (node) => measure(node, node.id?.name),
            FunctionExpression: expression,
            ArrowFunctionExpression: expression,
          }),
        },
      },
    },
    file,
    text,
  );
  return found;
}

/** The list below "Long functions": `` - `FILE NAME`: reason ``. */
async function exceptions(): Promise<Map<string, string>> {
  const text = await Deno.readTextFile(new URL("ARCHITECTURE.md", ROOT));
  const [, section] = /^## Long functions$([^]*?)(?=^## |$(?![^]))/m.exec(
    text,
  )!;
  const items = section.matchAll(
    /^- `([^`]+)`:\s*([^]+?)(?=\n- |\n\n|$(?![^]))/gm,
  );
  return new Map([...items].map(([, name, reason]) => [name, reason]));
}

Deno.test("functions of every syntax are measured", () => {
  const text = `function one() {
  return 1;
}
class Two {
  async #three(): Promise<void> {

    await 0;
  }
  get four() { return 4; }
}
const five = (x: number) =>
  x;
const six = { seven() {
} };
`;
  assertEquals(functionsOf("a.ts", text), [
    { name: "a.ts one", lines: 3 },
    { name: "a.ts three", lines: 4 },
    { name: "a.ts four", lines: 1 },
    { name: "a.ts five", lines: 2 },
    { name: "a.ts seven", lines: 2 },
  ]);
});

Deno.test(`functions of the product have at most ${MOST_LINES} lines`, async () => {
  const files = await productFiles();
  const all: Measured[] = [];
  for (const file of files) {
    const text = await Deno.readTextFile(new URL(file, ROOT));
    all.push(...functionsOf(file, text));
  }
  assert(all.length > 500, `only ${all.length} functions were found`);
  const long = all.filter(({ lines }) => lines > MOST_LINES);
  const allowed = await exceptions();
  assert(allowed.size <= MOST_EXCEPTIONS);
  for (const [name, reason] of allowed) {
    assertMatch(reason, /\w+ \w+/, `${name} is listed without a reason`);
  }
  // And the reverse: a listed function that is short must leave the list.
  assertEquals(
    long.map(({ name }) => name).sort(),
    [...allowed.keys()].sort(),
    long.map(({ name, lines }) => `${name}: ${lines} lines`).join("\n"),
  );
});
