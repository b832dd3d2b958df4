/**
 * GGUF files by their names: which ones are models, the parts of a split one, and the one
 * that a user means by its type.
 *
 * @module
 */
import { listed, quoted } from "../errors.ts";

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
/** The most characters of the names in an error: a repository has about 25 files. */
const MOST_NAMED = 56;

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
  return !hasSafetensors(names) && ggufFiles(names).length > 0;
}

function hasSafetensors(names: readonly string[]): boolean {
  return names.includes("config.json") &&
    names.some((name) => /^model\.safetensors(\.index\.json)?$/.test(name));
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
 * @throws {GgufChoiceError} if none or several fit
 */
export function chooseGguf(
  files: ReadonlyMap<string, number>,
  pick: string | undefined,
): GgufChoice {
  // Names that a server lists become paths in the cache.
  const names = [...files.keys()].filter(isInside);
  const models = ggufFiles(names);
  if (pick === undefined) {
    if (models.length === 1) return { file: models[0], isSure: false };
    const labels = labelsOf(models, files);
    if (labels.length === 0) throw new GgufChoiceError("it has no GGUF file");
    throw new GgufChoiceError(
      `it has ${counted(models)}, add :${labels[0]} or another: ${
        brief(labels.slice(1))
      }`,
    );
  }
  const wanted = pick.toLowerCase();
  if (wanted.endsWith(".gguf")) {
    const named = names.filter((file) =>
      [file, baseOf(file)].some((name) => name.toLowerCase() === wanted)
    );
    if (named.length > 0) return only(named, pick, true);
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
    if (fit.length > 0) return only(fit, pick, i === 0);
  }
  if (models.length === 0 && hasSafetensors(names)) {
    throw new GgufChoiceError(
      `it has safetensors and no GGUF file, leave :${quoted(pick, 40)} out`,
    );
  }
  const labels = labelsOf(models, files);
  const close = labels.filter((label) => label.toLowerCase().includes(wanted));
  const has = brief(close.length > 0 ? close : labels);
  throw new GgufChoiceError(
    `it has no GGUF file ${quoted(pick, 40)}${has && `, it has ${has}`}`,
  );
}

function only(
  fit: readonly string[],
  pick: string,
  isSure: boolean,
): GgufChoice {
  if (fit.length === 1) return { file: fit[0], isSure };
  throw new GgufChoiceError(
    `${pick} fits ${counted(fit)}, name one: ${brief(fit)}`,
  );
}

function counted(files: readonly string[]): string {
  return `${files.length} GGUF files`;
}

/**
 * What selects each file: its type, or its name if others have the type. First comes what
 * most people take, then the smallest.
 */
function labelsOf(
  models: readonly string[],
  files: ReadonlyMap<string, number>,
): string[] {
  const types = Map.groupBy(models, (file) => typeOf(file)?.toLowerCase());
  const rank = (file: string) =>
    typeOf(file)?.toUpperCase() === "Q4_K_M" ? -1 : sizeOf(file, files);
  return models.toSorted((a, b) => rank(a) - rank(b)).map((file) => {
    const type = typeOf(file);
    return type && types.get(type.toLowerCase())!.length === 1 ? type : file;
  });
}

/** Lists as many of the names as an error has room for, and counts the others. */
function brief(names: readonly string[]): string {
  let room = MOST_NAMED, few = 0;
  while (few < names.length && (room -= names[few].length + 2) >= 0) few++;
  return listed(names, Math.max(1, few));
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
