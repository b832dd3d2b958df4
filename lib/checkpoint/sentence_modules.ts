/**
 * What a folder of Sentence Transformers says about its model: `modules.json` lists what
 * follows the transformer, and a pooling module has a `config.json` of its own.
 *
 * @module
 */
import type { Purpose } from "./checkpoint.ts";
import { jsonText, quoted } from "../errors.ts";
import { isObject } from "../json.ts";

/** The file that lists the modules. */
const MODULES = "modules.json";
/** The names of folders of modules. */
const MODULE_FOLDER = /^\d+_\w+$/;

/** Whether a file of a repository is read here. */
export function isSentenceFile(path: string): boolean {
  const [, folder] = /^(.*)\/config\.json$/.exec(path) ?? [];
  return path === MODULES || folder !== undefined && MODULE_FOLDER.test(folder);
}

/** Modules of an embedding model that are implemented here, by the ends of their types. */
const KNOWN = ["Transformer", "Pooling", "Normalize"];

/**
 * Reads what a model is for; undefined if nothing says that it embeds texts.
 *
 * @param json reads a JSON file of the folder; undefined if there is none
 * @param locate names a file, for errors
 * @throws {Error} if the vectors are made in another way than from the last token's state
 */
export async function readPurpose(
  json: (file: string) => Promise<unknown>,
  locate: (file: string) => string,
): Promise<Purpose | undefined> {
  const listed = await json(MODULES);
  const modules = Array.isArray(listed) ? listed.filter(isObject) : [];
  const kinds = modules.map(({ type }) => String(type).split(".").at(-1)!);
  const pooling = kinds.indexOf("Pooling");
  if (pooling < 0) return undefined;
  const other = kinds.find((kind) => !KNOWN.includes(kind));
  if (other !== undefined) {
    throw new Error(
      `Cannot use ${locate(MODULES)}: it has a module ${
        quoted(other)
      }, must have ${KNOWN.join(", ")} only`,
    );
  }
  const { path } = modules[pooling];
  if (typeof path !== "string" || !MODULE_FOLDER.test(path)) {
    throw new Error(
      `Cannot use ${locate(MODULES)}: the path of Pooling is ${
        jsonText(path)
      }, must be such as "1_Pooling"`,
    );
  }
  const file = `${path}/config.json`;
  const config = await json(file);
  const fields = isObject(config) ? config : {};
  // Newer files name the mode, older ones have a flag for each.
  const modes = fields.pooling_mode !== undefined
    ? [fields.pooling_mode].flat()
    : Object.keys(fields).filter((name) =>
      /^pooling_mode_/.test(name) && fields[name] === true
    ).map((name) => name.replace(/^pooling_mode_/, ""));
  if (modes.length !== 1 || modes[0] !== "lasttoken") {
    throw new Error(
      `Cannot use ${locate(file)}: the pooling is ${
        jsonText(modes)
      }, must be "lasttoken"`,
    );
  }
  return { is: "an embedding model", why: `${MODULES} has a pooling module` };
}
