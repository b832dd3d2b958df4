/**
 * What to pass instead of a name that cannot be a checkpoint: names of other programs,
 * pages of the Hub, files in place of folders.
 *
 * @module
 */
import { SYNTHETIC_SIZES } from "./synthetic.ts";

const NO_REPOSITORY =
  "GGUF repositories are not supported yet: pass a .gguf file or its URL";
const NO_FILE = "there is no such file";
/** Files of a checkpoint, given in place of its folder. */
const CHECKPOINT_FILE = /[^/\\]+\.(safetensors|json|jinja|txt|bin|pt|pth)$/i;
const EXAMPLE = "Qwen/Qwen3-0.6B";

/**
 * What is wrong with a URL, without its query; undefined if it may be the folder of a
 * checkpoint.
 */
export function urlHint(url: URL): string | undefined {
  const path = url.pathname;
  if (/^(www\.)?(huggingface\.co|hf\.co)$/.test(url.hostname)) {
    const [, id, kind, revision] =
      /^\/([\w-][\w.-]*\/[\w-][\w.-]*)(?:\/(\w+)(?:\/([^/]+).*)?)?\/?$/
        .exec(path) ?? [];
    if (kind === "blob" && /\.gguf$/i.test(path)) {
      return `it is a page, pass the file: ${url.origin}${
        path.replace("/blob/", "/resolve/")
      }`;
    }
    if (id !== undefined && kind !== "resolve" && !id.startsWith("api/")) {
      const at = revision === undefined || revision === "main"
        ? ""
        : `@${decoded(revision)}`;
      return `it is a page, pass the repository ${modelOf(id)}${at}`;
    }
  }
  if (CHECKPOINT_FILE.test(path)) {
    const folder = url.origin + path.replace(CHECKPOINT_FILE, "");
    return `it is a file, must be the folder of a checkpoint: ${folder}`;
  }
}

/** What is wrong with a file given as a checkpoint. */
export function fileHint(path: string): string {
  const must = "it is a file, must be the folder of a checkpoint";
  if (!CHECKPOINT_FILE.test(path)) return must;
  const folder = path.replace(CHECKPOINT_FILE, "");
  return `${must}: ${/^file:/i.test(path) || folder !== "" ? folder : "."}`;
}

/**
 * What is wrong with a name of which there is no folder; undefined if it may be a
 * repository's or a folder's.
 */
export function nameHint(spec: string): string | undefined {
  const name = spec.trim();
  if (/\.gguf(@.*)?$/i.test(name)) return NO_FILE;
  if (/^~/.test(name)) {
    return "there is no such directory: the shell expands ~ only unquoted and first, write $HOME";
  }
  const [, ollama] = /^qwen3(?::([\w.-]*))?$/i.exec(name) ?? [];
  if (ollama !== undefined || /^qwen3$/i.test(name)) {
    const [size] = /^[\d.]+b/i.exec(ollama ?? "") ?? [];
    if (size === undefined || !isSize(size)) {
      return `${
        ollama === undefined
          ? "the size is missing"
          : "it is a name of Ollama's"
      }, pass a repository such as ${EXAMPLE}`;
    }
    return `it is a name of Ollama's, pass Qwen/Qwen3-${size.toUpperCase()}`;
  }
  const [, variant, at = ""] = /^qwen3-([\w.-]+)(@.*)?$/i.exec(name) ?? [];
  if (variant !== undefined) {
    const id = modelOf(
      `Qwen/Qwen3-${
        variant.replaceAll(/\ba?[\d.]+b\b/gi, (size) => size.toUpperCase())
      }`,
    );
    const synthetic = isSize(variant)
      ? `, or synthetic:qwen3-${variant.toLowerCase()}`
      : "";
    return `there is no such directory, did you mean ${id}${at}${synthetic}`;
  }
  if (/^(localhost|[\w-]+(\.[\w-]+)+):\d{2,5}(\/|$)/i.test(name)) {
    return `there is no such directory, did you mean http://${name}`;
  }
  const [, synthetic] = /^[a-z]{2,}:(qwen3-.*)$/i.exec(name) ?? [];
  if (synthetic !== undefined) return `did you mean synthetic:${synthetic}`;
  const [, page] = /^(?:www\.)?(?:huggingface\.co|hf\.co)\/([^:]+)/i
    .exec(name) ?? [];
  if (page !== undefined) {
    return `it is a page, pass the repository ${
      modelOf(page.split("/").slice(0, 2).join("/"))
    }`;
  }
  if (/^[^/\\]+\/[^/\\]*-gguf([@:].*)?$/i.test(name)) {
    return `${NO_REPOSITORY}, or ${modelOf(name.replace(/[@:].*/, ""))}`;
  }
}

/** The repository that holds a model's safetensors, as far as its name tells. */
function modelOf(id: string): string {
  return id.replace(/-gguf$/i, "");
}

function isSize(text: string): boolean {
  return SYNTHETIC_SIZES.includes(text.toLowerCase());
}

/** Decodes a part of a URL; one that is wrong stays as it is. */
export function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch { // a lone %
    return text;
  }
}
