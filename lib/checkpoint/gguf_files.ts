/**
 * GGUF files by their names: which ones are models, the parts of a split one, and the one
 * that a user means by its type.
 *
 * @module
 */
import { listed } from "../errors.ts";
import { bytesText } from "./sources.ts";

/** How the parts of a split file are named. */
const PART = /-(\d{5})-of-(\d{5})(\.gguf)$/i;
/** The most parts of a split file. */
const MOST_PARTS = 1000;
/**
 * Files beside a model that are none: encoders of images, statistics, draft models, what
 * macOS leaves.
 */
const COMPANION = /mmproj|imatrix|^(mtp|eagle3|dflash|dspark)-|^\./i;
/** The type at the end of a file's name, with the prefixes that mark a mixture. */
const TYPE =
  /(?:^|[-._])((?:UD-|i1-)?(?:I?Q\d|TQ\d|MXFP4|NVFP4|BF16|F16|FP16|F32)\w*)$/i;
/** The most files that an error names: a repository has about 25. */
const MOST_NAMED = 32;

/** A name does not select one GGUF file. */
export class GgufChoiceError extends Error {}

/** The file that was chosen. */
export interface GgufChoice {
  file: string;
  /** Whether more files would not change the choice. */
  isSure: boolean;
}

/** The models among the files `names`: whole ones, and first parts. */
export function ggufFiles(names: Iterable<string>): string[] {
  return [...names].filter((name) =>
    isFirst(name) && !COMPANION.test(baseOf(name))
  ).sort();
}

/** Whether files have GGUF models, and no safetensors with their config.json. */
export function isGgufOnly(names: readonly string[]): boolean {
  const isWhole = names.includes("config.json") &&
    names.some((name) => /^model\.safetensors(\.index\.json)?$/.test(name));
  return !isWhole && ggufFiles(names).length > 0;
}

/**
 * The names of all parts of a file, in order; of a whole one, its own.
 *
 * @throws {Error} if there are too many
 */
export function partsOf(name: string, file: string): string[] {
  const [suffix, , last, extension] = PART.exec(file) ?? [];
  if (suffix === undefined) return [file];
  const count = Number(last);
  if (count < 1 || count > MOST_PARTS) {
    throw new Error(
      `Cannot open ${name}: it has ${count} parts, must have 1 to ${MOST_PARTS}`,
    );
  }
  const base = file.slice(0, -suffix.length);
  return Array.from(
    { length: count },
    (_, i) => `${base}-${`${i + 1}`.padStart(5, "0")}-of-${last}${extension}`,
  );
}

/**
 * Chooses the file that `pick` means: a type, in any case, that ends the file's name
 * (`Q4_K_M`, also `UD-Q4_K_XL`), or a whole name. As in llama.cpp, a type may also stand
 * further to the front, and a split file counts as one; of several that fit, the ones
 * whose whole type it is win.
 *
 * @param files all files of a folder or repository, with their bytes
 * @param pick undefined if nothing was named: there must be one file then
 * @param form how to name one, for errors, such as `owner/name`
 * @throws {GgufChoiceError} if none or several fit
 */
export function chooseGguf(
  files: ReadonlyMap<string, number>,
  pick: string | undefined,
  form: string,
): GgufChoice {
  // Names that a server lists become paths in the cache.
  const names = [...files.keys()].filter(isInside);
  const models = ggufFiles(names);
  if (pick === undefined) {
    if (models.length === 1) return { file: models[0], isSure: false };
    const labels = labelsOf(models, files);
    if (labels.length === 0) throw new GgufChoiceError("it has no GGUF file");
    const example = labels.find(({ label }) => /^Q4_K_M$/i.test(label)) ??
      labels[0];
    throw new GgufChoiceError(
      `it has ${counted(models)}, name one, as in ${form}:${example.label}: ${
        choices(labels)
      }`,
    );
  }
  const wanted = pick.toLowerCase();
  if (wanted.endsWith(".gguf")) {
    const named = names.filter((file) =>
      [file, baseOf(file)].some((name) => name.toLowerCase() === wanted)
    );
    if (named.length > 0) return only(named, pick, files, form, true);
  }
  const tests = [
    (file: string) => typeOf(file)?.toLowerCase() === wanted,
    (file: string) =>
      ["-", "."].some((before) => stemOf(file).endsWith(before + wanted)),
    (file: string) => {
      const path = `/${file.toLowerCase()}`;
      return ["/", "-", "."].some((before) =>
        ["-", "."].some((after) => path.includes(before + wanted + after))
      );
    },
  ];
  for (const [i, test] of tests.entries()) {
    const fit = models.filter(test);
    if (fit.length > 0) return only(fit, pick, files, form, i === 0);
  }
  throw new GgufChoiceError(
    `it has no GGUF file ${pick}${
      models.length > 0 ? `, it has ${choices(labelsOf(models, files))}` : ""
    }`,
  );
}

function only(
  fit: readonly string[],
  pick: string,
  files: ReadonlyMap<string, number>,
  form: string,
  isSure: boolean,
): GgufChoice {
  if (fit.length === 1) return { file: fit[0], isSure };
  const labels = fit.map((file) => ({
    label: file,
    size: sizeOf(file, files),
  }));
  throw new GgufChoiceError(
    `${pick} fits ${counted(fit)}, name one as ${form}:FILE: ${
      choices(labels)
    }`,
  );
}

function counted(files: readonly string[]): string {
  return `${files.length} GGUF files`;
}

/** What selects a file, and its bytes. */
interface Label {
  label: string;
  size: number;
}

/** The type of each file, the smallest file first; the names of those that share one. */
function labelsOf(
  models: readonly string[],
  files: ReadonlyMap<string, number>,
): Label[] {
  const types = Map.groupBy(models, (file) => typeOf(file)?.toLowerCase());
  return models.map((file) => {
    const type = typeOf(file);
    const isOne = type && types.get(type.toLowerCase())!.length === 1;
    return { label: isOne ? type : file, size: sizeOf(file, files) };
  }).sort((a, b) => a.size - b.size);
}

function choices(labels: readonly Label[]): string {
  const texts = labels.map(({ label, size }) =>
    `${label} (${bytesText(size)})`
  );
  return listed(texts, MOST_NAMED);
}

/** The bytes of a file with its other parts. */
function sizeOf(file: string, files: ReadonlyMap<string, number>): number {
  return partsOf(file, file)
    .reduce((sum, part) => sum + (files.get(part) ?? 0), 0);
}

function isFirst(name: string): boolean {
  const [, part = 1, count = 1] = PART.exec(name) ?? [];
  return /\.gguf$/i.test(name) && Number(part) === 1 &&
    Number(count) >= 1 && Number(count) <= MOST_PARTS;
}

/** Whether a path stays in its folder, on Windows too. */
function isInside(path: string): boolean {
  return !/[\\:\0]/.test(path) &&
    path.split("/").every((part) => !["", ".", ".."].includes(part));
}

function baseOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** A file's name without folder, number and extension, in lower case. */
function stemOf(file: string): string {
  return baseOf(file).replace(PART, "").replace(/\.gguf$/i, "").toLowerCase();
}

/** The type in a file's name, as written there. */
function typeOf(file: string): string | undefined {
  const stem = baseOf(file).replace(PART, "").replace(/\.gguf$/i, "");
  return TYPE.exec(stem)?.[1];
}
