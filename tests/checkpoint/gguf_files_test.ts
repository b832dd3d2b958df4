import { assertEquals, assertThrows } from "@std/assert";
import {
  chooseGguf,
  GgufChoiceError,
  ggufFiles,
  isGgufOnly,
  partsOf,
} from "../../lib/checkpoint/gguf_files.ts";

/** A repository as publishers fill them, with a GB more for each file. */
const NAMES = [
  "BF16/Qwen3-8B-BF16-00001-of-00002.gguf",
  "BF16/Qwen3-8B-BF16-00002-of-00002.gguf",
  "Qwen3-8B-IQ4_XS.gguf",
  "Qwen3-8B-Q4_K_M.gguf",
  "Qwen3-8B-Q8_0.gguf",
  "Qwen3-8B-UD-Q4_K_M.gguf",
  "Qwen3-8B-UD-Q4_K_XL.gguf",
  "README.md",
  "mmproj-F16.gguf",
  "imatrix_unsloth.gguf",
  "._Qwen3-8B-Q6_K.gguf",
  "config.json",
];
const filesOf = (names: readonly string[]) =>
  new Map(names.map((name, i) => [name, (i + 1) * 1e9]));
const chosen = (pick: string | undefined, names = NAMES) =>
  chooseGguf(filesOf(names), pick).file;
const refused = (pick: string | undefined, names = NAMES) =>
  assertThrows(() => chosen(pick, names), GgufChoiceError).message;

Deno.test("a type picks the GGUF file whose name ends with it", () => {
  for (
    const [pick, file] of [
      ["Q4_K_M", "Qwen3-8B-Q4_K_M.gguf"],
      ["q4_k_m", "Qwen3-8B-Q4_K_M.gguf"],
      ["UD-Q4_K_M", "Qwen3-8B-UD-Q4_K_M.gguf"],
      ["Q4_K_XL", "Qwen3-8B-UD-Q4_K_XL.gguf"],
      ["iq4_xs", "Qwen3-8B-IQ4_XS.gguf"],
      ["bf16", NAMES[0]],
      ["Qwen3-8B-Q8_0.gguf", "Qwen3-8B-Q8_0.gguf"],
      ["qwen3-8b-bf16-00001-of-00002.GGUF", NAMES[0]],
      [NAMES[0], NAMES[0]],
      ["mmproj-F16.gguf", "mmproj-F16.gguf"], // by name whatever it is
    ]
  ) {
    assertEquals(chosen(pick), file);
  }
  // As llama.cpp does, anywhere before a dot or a dash.
  const odd = ["m-Q4_K_M-imat.gguf", "m.q8_0.gguf", "Q6_K.gguf"];
  assertEquals(
    odd.map((_, i) => chosen(["Q4_K_M", "Q8_0", "Q6_K"][i], odd)),
    odd,
  );
  assertEquals(
    chosen("Q4_K_M", ["Q4_K_M/m.gguf", "m-Q4_K_M.gguf"]),
    "m-Q4_K_M.gguf",
  );
});

Deno.test("a choice is sure where other files would not change it", () => {
  const isSure = (pick: string | undefined, names: string[]) =>
    chooseGguf(filesOf(names), pick).isSure;
  const one = ["m-UD-Q4_K_M.gguf"];
  assertEquals(isSure("UD-Q4_K_M", one), true);
  assertEquals(isSure("m-UD-Q4_K_M.gguf", one), true);
  assertEquals(isSure("Q4_K_M", one), false);
  assertEquals(isSure(undefined, one), false);
});

Deno.test("what does not pick one GGUF file is answered with a list", () => {
  const rest = "BF16, IQ4_XS, Q8_0, UD-Q4_K_M, UD-Q4_K_XL";
  assertEquals(
    refused(undefined),
    `it has 6 GGUF files, add :Q4_K_M or another: ${rest}`,
  );
  assertEquals(
    refused("Q5_K_M"),
    `it has no GGUF file Q5_K_M, it has Q4_K_M, ${rest}`,
  );
  assertEquals(
    refused("q4"), // those that it may mean
    "it has no GGUF file q4, it has Q4_K_M, IQ4_XS, UD-Q4_K_M, UD-Q4_K_XL",
  );
  const many = Array.from({ length: 9 }, (_, i) => `model-of-mine-${i}.gguf`);
  assertEquals(
    refused(undefined, many),
    "it has 9 GGUF files, add :model-of-mine-0.gguf or another: model-of-mine-1.gguf, model-of-mine-2.gguf and 6 more",
  );
  // Part of a type is none.
  for (
    const pick of ["Q4_K", "4_K_M", "K_M", "Q4", "F16", "imatrix", "x.gguf"]
  ) {
    assertEquals(refused(pick).split(",")[0], `it has no GGUF file ${pick}`);
  }
  assertEquals(
    refused("q8_0", ["a-Q8_0.gguf", "b-Q8_0.gguf"]),
    "q8_0 fits 2 GGUF files, name one: a-Q8_0.gguf, b-Q8_0.gguf",
  );
  assertEquals(
    refused(undefined, ["a-Q8_0.gguf", "b-Q8_0.gguf", "c-F16.gguf"]),
    "it has 3 GGUF files, add :a-Q8_0.gguf or another: b-Q8_0.gguf, F16",
  );
  assertEquals(refused(undefined, ["README.md"]), "it has no GGUF file");
  assertEquals(refused("Q8_0", []), "it has no GGUF file Q8_0");
  assertEquals(
    chosen(undefined, ["README.md", "m.gguf", "mmproj.gguf"]),
    "m.gguf",
  );
  assertEquals(
    refused("Q8_0", ["config.json", "model.safetensors"]),
    "it has safetensors and no GGUF file, leave :Q8_0 out",
  );
  // Names of a server become paths.
  for (
    const name of [
      "../m-Q8_0.gguf",
      "/m-Q8_0.gguf",
      "a/../../m-Q8_0.gguf",
      "..\\m-Q8_0.gguf",
      "C:m-Q8_0.gguf",
    ]
  ) {
    assertEquals(refused("Q8_0", [name]), "it has no GGUF file Q8_0");
    assertEquals(refused(name, [name]), `it has no GGUF file ${name}`);
  }
});

Deno.test("parts of a split GGUF file count as one", () => {
  assertEquals(ggufFiles(NAMES).length, 6);
  assertEquals(partsOf("m", NAMES[0]), NAMES.slice(0, 2));
  assertEquals(partsOf("m", "a.gguf"), ["a.gguf"]);
  assertEquals(
    ggufFiles(["a-00001-of-99999.gguf", "a-00001-of-00000.gguf"]),
    [],
  );
  assertThrows(
    () => partsOf("m", "a-00001-of-99999.gguf"),
    Error,
    "Cannot open m: it has 99999 parts, must have 1 to 1000",
  );
});

Deno.test("safetensors with their config.json win over GGUF files", () => {
  for (
    const [expected, ...names] of [
      [true, "a.gguf"],
      [true, "a.gguf", "config.json"],
      [true, "a.gguf", "model.safetensors"],
      [false, "a.gguf", "config.json", "model.safetensors"],
      [false, "a.gguf", "config.json", "model.safetensors.index.json"],
      [false, "mmproj.gguf"],
      [false],
    ] as [boolean, ...string[]][]
  ) {
    assertEquals(isGgufOnly(names), expected, names.join());
  }
});
