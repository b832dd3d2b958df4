/**
 * What to pass instead of a name that cannot be a checkpoint: names of other programs,
 * pages of the Hub, files in place of folders.
 *
 * @module
 */
import { SYNTHETIC_SIZES } from "./synthetic.ts";

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
    const [, id, kind, revision, file] =
      /^\/([\w-][\w.-]*\/[\w-][\w.-]*(?:[@:][^/]+)?)(?:\/(\w+)(?:\/([^/]+)(?:\/(.+))?)?)?\/?$/
        .exec(path) ?? [];
    const at = revision === undefined || revision === "main"
      ? ""
      : `@${decoded(revision)}`;
    if (kind === "blob" && /\.gguf$/i.test(file ?? "")) {
      return `it is a page, pass the file of the repository: ${id}${at}:${
        decoded(file!)
      }`;
    }
    if (id !== undefined && kind !== "resolve" && !id.startsWith("api/")) {
      return `it is a page, pass the repository ${id}${at}`;
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
  const [, page] = /^((?:www\.)?(?:huggingface\.co|hf\.co)\/.*)$/i
    .exec(name) ?? [];
  if (page !== undefined) {
    // Two words are a repository, as Ollama's users write it.
    if (/^[^/]+\/[^/]+\/[^/:]+(:.*)?$/.test(page)) return;
    const url = URL.parse(`https://${page}`);
    return (url && urlHint(url)) ?? `did you mean https://${page}`;
  }
  const [, gguf, file, pick, late] =
    /^([\w-][\w.-]*\/[\w-][\w.-]*)(?:\/(.+\.gguf)|:([^@:\\]+)(@.+))$/i
      .exec(name) ?? [];
  if (file !== undefined) {
    return `${NO_FILE}, a file of a repository is ${gguf}:${file}`;
  }
  if (late !== undefined) {
    return `the revision comes first, pass ${gguf}${late}:${pick}`;
  }
  if (/\.gguf(@.*)?$/i.test(name) && !/^[^:\\]+\/[^:\\]+:/.test(name)) {
    return NO_FILE;
  }
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
    const id = `Qwen/Qwen3-${size.toUpperCase()}`;
    const [, type] = /-((?:i?q\d|fp?16|bf16)\w*)$/i.exec(ollama) ?? [];
    return `it is a name of Ollama's, pass ${id}${
      type === undefined ? "" : `-GGUF:${type.toUpperCase().replace("FP", "F")}`
    }`;
  }
  const [, variant, at = ""] = /^qwen3-([\w.-]+)([@:].*)?$/i.exec(name) ?? [];
  if (variant !== undefined) {
    const id = `Qwen/Qwen3-${
      variant.replaceAll(/\ba?[\d.]+b\b|gguf$/gi, (size) => size.toUpperCase())
    }`;
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
