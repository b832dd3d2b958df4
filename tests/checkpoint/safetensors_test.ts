import { assertEquals, assertRejects } from "@std/assert";
import {
  type ByteSource,
  parseSafetensorsIndex,
  readSafetensorsHeader,
} from "../../lib/checkpoint/safetensors.ts";

function sourceOf(bytes: Uint8Array): ByteSource {
  return {
    name: "m.safetensors",
    size: bytes.length,
    // deno-lint-ignore require-await
    async read(begin, into) {
      into.set(bytes.subarray(begin, begin + into.length));
    },
  };
}

/** A file with this header and `bytes` bytes of data. */
function fileOf(
  header: unknown,
  dataBytes: number,
  headerBytes?: number | bigint,
): Uint8Array {
  const text = typeof header === "string" ? header : JSON.stringify(header);
  const json = new TextEncoder().encode(text);
  const file = new Uint8Array(8 + json.length + dataBytes);
  new DataView(file.buffer).setBigUint64(
    0,
    BigInt(headerBytes ?? json.length),
    true,
  );
  file.set(json, 8);
  return file;
}

const tensor = (
  dtype: unknown,
  shape: unknown,
  ...data_offsets: unknown[]
) => ({
  dtype,
  shape,
  data_offsets,
});

async function assertRefused(file: Uint8Array, message: string) {
  const error = await assertRejects(
    () => readSafetensorsHeader(sourceOf(file)),
    Error,
    message,
  );
  assertEquals(error.message.includes("\n"), false);
  assertEquals(error.message.startsWith("Cannot read "), true);
  assertEquals(error.message.includes("m.safetensors"), true);
}

Deno.test("readSafetensorsHeader has types, shapes and offsets", async () => {
  const header = {
    __metadata__: { format: "pt" },
    b: tensor("F32", [], 8, 12),
    a: tensor("BF16", [2, 2], 0, 8),
    'c\\"{': tensor("F16", [0, 7], 12, 12),
    d: tensor("F16", [1], 12, 14),
  };
  const text = JSON.stringify(header) + "  "; // writers pad with spaces
  const begin = 8 + text.length;
  const source = sourceOf(fileOf(text, 14));
  const entries = await readSafetensorsHeader(source);
  assertEquals([...entries.keys()], ["b", "a", 'c\\"{', "d"]);
  assertEquals(entries.get("a"), {
    source,
    name: "a",
    dtype: "BF16",
    shape: [2, 2],
    begin,
    end: begin + 8,
  });
  assertEquals(entries.get("b"), {
    source,
    name: "b",
    dtype: "F32",
    shape: [],
    begin: begin + 8,
    end: begin + 12,
  });
  assertEquals(entries.get('c\\"{'), {
    source,
    name: 'c\\"{',
    dtype: "F16",
    shape: [0, 7],
    begin: begin + 12,
    end: begin + 12,
  });
});

Deno.test("readSafetensorsHeader refuses files that cannot be safetensors", async () => {
  await assertRefused(
    new Uint8Array(5),
    "it has 5 bytes, a safetensors file has at least 8",
  );
  await assertRefused(
    fileOf("{}", 0, 3000),
    "its header should have 3000 bytes, but only 2 follow",
  );
  await assertRefused(
    fileOf("{}", 0, 2n ** 63n),
    "its header should have 9223372036854776000 bytes",
  );
  await assertRejects(
    () =>
      readSafetensorsHeader({
        name: "huge",
        size: 1e12,
        // deno-lint-ignore require-await
        async read(_begin, into) {
          new DataView(into.buffer).setBigUint64(0, 100_000_001n, true);
        },
      }),
    Error,
    "its header has 100000001 bytes, at most 100000000 are allowed",
  );
  await assertRefused(
    fileOf('{"a":\n\n}', 0),
    'Cannot read the header of m.safetensors: it is not valid JSON (it has "}" at byte 7, where a value must be)',
  );
  const latin1 = fileOf('{"aa":1}', 0);
  latin1[10] = 0xff;
  await assertRefused(latin1, "its header is not valid UTF-8");
  await assertRefused(fileOf("[]", 0), "its header must be a JSON object");
  await assertRefused(fileOf("null", 0), "its header must be a JSON object");
  const entry = JSON.stringify(tensor("F32", [1], 0, 4));
  await assertRefused(
    fileOf(`{"a":${entry},"\\u0061":${entry}}`, 4),
    'its header has "a" twice',
  );
});

Deno.test("readSafetensorsHeader refuses invalid tensors", async () => {
  const refused: [unknown, number, string][] = [
    [
      { a: tensor(undefined, [1], 0, 4) },
      4,
      "tensor a has dtype missing, must be the name of a type",
    ],
    [{ a: tensor(7, [1], 0, 4) }, 4, "tensor a has dtype 7, must be"],
    [
      { a: tensor("F".repeat(1e5), [1], 0, 4) },
      4,
      `tensor a has dtype "${"F".repeat(49)}…${"F".repeat(49)}, must be`,
    ],
    [{ a: 7 }, 4, "tensor a must be described by an object"],
    [
      { a: tensor("F32", [1.5], 0, 6) },
      6,
      "tensor a has shape [1.5], must be a list of sizes",
    ],
    [{ a: tensor("F32", [-1], 0, 4) }, 4, "tensor a has shape [-1]"],
    [{ a: tensor("F32", 1, 0, 4) }, 4, "tensor a has shape 1,"],
    [
      { a: tensor("F32", [1], 0) },
      4,
      "tensor a has data_offsets [0], must be [begin, end]",
    ],
    [{ a: tensor("F32", [1], 4, 0) }, 4, "tensor a has data_offsets [4,0]"],
    [{ a: tensor("F32", [1], -4, 0) }, 4, "tensor a has data_offsets [-4,0]"],
    [
      { a: tensor("F32", [2, 3], 0, 20) },
      20,
      "tensor a has 20 bytes, but F32 of shape [2, 3] needs 24",
    ],
    [
      { a: tensor("BF16", [2 ** 40, 2 ** 40], 0, 4) },
      4,
      "tensor a has 4 bytes, but BF16 of shape",
    ],
  ];
  for (const [header, bytes, message] of refused) {
    await assertRefused(fileOf(header, bytes), message);
  }
});

Deno.test("readSafetensorsHeader refuses overlaps, holes and missing data", async () => {
  const a = tensor("F32", [2], 0, 8);
  await assertRefused(
    fileOf({ a, b: tensor("F32", [1], 4, 8) }, 8),
    "tensor b begins at byte",
  );
  await assertRefused(
    fileOf({ a, b: tensor("F32", [2], 0, 8) }, 8),
    "inside a",
  );
  await assertRefused(
    fileOf({ a, b: tensor("F32", [1], 12, 16) }, 16),
    "4 bytes between a and tensor b belong to no tensor",
  );
  await assertRefused(
    fileOf({ a: tensor("F32", [1], 4, 8) }, 8),
    "4 bytes between the header and tensor a belong to no tensor",
  );
  await assertRefused(
    fileOf({ a }, 11),
    "the 3 bytes after a belong to no tensor",
  );
  const whole = fileOf({ a }, 8);
  await assertRefused(
    whole.slice(0, -1),
    `tensor a ends at byte ${whole.length}, but the file has ${
      whole.length - 1
    } bytes: it is truncated`,
  );
});

Deno.test("parseSafetensorsIndex maps tensors to shards next to the index", () => {
  const parse = (map: unknown) =>
    parseSafetensorsIndex(
      JSON.stringify({ metadata: {}, weight_map: map }),
      "i.json",
    );
  assertEquals([...parse({ a: "1.safetensors", b: "1.safetensors" })], [
    ["a", "1.safetensors"],
    ["b", "1.safetensors"],
  ]);
  for (
    const shard of [
      ...["../1.safetensors", "/etc/passwd", "x\\1.safetensors", 3],
      ...[
        "http:1.safetensors",
        "%31.safetensors",
        "1.safetensors?a",
        "\n.safetensors",
      ],
      ...["1?.safetensors", "1#.safetensors", "a..b.safetensors"],
    ]
  ) {
    let message = "";
    try {
      parse({ a: shard });
    } catch (error) {
      message = (error as Error).message;
    }
    assertEquals(
      message,
      `Cannot use i.json: it puts a in ${
        JSON.stringify(shard)
      }, must be a .safetensors file in the same folder, by its plain name`,
    );
  }
});

Deno.test("readSafetensorsHeader takes names of every kind", async () => {
  const names = [
    "",
    "__proto__",
    "constructor",
    "a\u0000b",
    "😀\\u0041",
    "\ud800",
  ];
  const text = `{${
    names.map((name, i) =>
      `${JSON.stringify(name)}:{"dtype":"U8","shape":[1],"data_offsets":[${i},${
        i + 1
      }]}`
    ).join(",\n\t")
  }}`;
  const entries = await readSafetensorsHeader(sourceOf(fileOf(text, 6)));
  assertEquals([...entries.keys()], names);
});

Deno.test("readSafetensorsHeader keeps to the grammar of JSON and of the format", async () => {
  const a = (fields: string) => `{"a":{${fields}}}`;
  const good = '"dtype":"U8","shape":[1],"data_offsets":[0,1]';
  const header = "Cannot read the header of m.safetensors: it is";
  const refused: [text: string, message: string][] = [
    [
      `{"a":{${good}},}`,
      `${header} not valid JSON (it has "}" at byte 53, where a string must be)`,
    ],
    [
      `{"a":{${good}}} x`,
      `${header} not valid JSON (it has "x" at byte 54, where the end must be)`,
    ],
    [
      `{"a":{${good}}`,
      `${header} not valid JSON (it ends at byte 52, where "," or "}" must be)`,
    ],
    ["", "it is a file that begins with zeros, as an unfinished download"],
    [
      '{"a',
      `${header} not valid JSON (it ends at byte 3, where a character of a string must be)`,
    ],
    [
      '{"\\x":1}',
      `${header} not valid JSON (it has "x\\":1}" at byte 3, where an escape must be)`,
    ],
    [
      '{"\\u00g0":1}',
      `${header} not valid JSON (it has "g0\\":1}" at byte 6, where a hexadecimal digit must be)`,
    ],
    ['{"a\nb":1}', `${header} not valid JSON (it has "\\nb\\":1}" at byte 3`],
    [
      a(good.replace("[0,1]", "[00,1]")),
      `${header} not valid JSON (it has "00,1]}}" at byte`,
    ],
    [
      a(good.replace("[0,1]", "[0,+1]")),
      `${header} not valid JSON (it has "+1]}}" at byte`,
    ],
    [
      a(good.replace("[1]", "[1e0]")),
      "tensor a has shape [1e0], must be a list of sizes",
    ],
    [a(good.replace("[1]", "[1e400]")), "tensor a has shape [1e400], must be"],
    [a(good.replace("[1]", "[-0]")), "tensor a has shape [-0], must be"],
    [
      a(good.replace("[1]", "[9007199254740993]")),
      "tensor a has shape [9007199254740993], must be",
    ],
    [
      a(good.replace("[1]", `[${Array(1e4).fill(1)}]`)),
      "must be a list of sizes",
    ],
    [
      a(good.replace("[0,1]", "[0,1e300]")),
      "tensor a has data_offsets [0,1e300], must be [begin, end]",
    ],
    [
      a(good.replace("[0,1]", "[0,18446744073709551616]")),
      "must be [begin, end]",
    ],
    [a(`${good},"shape":[2]`), "tensor a has shape twice"],
    [
      `{"__metadata__":[],"a":{${good}}}`,
      "its __metadata__ is [], must be an object",
    ],
    [
      '{"__metadata__":{},"__metadata__":{}}',
      'its header has "__metadata__" twice',
    ],
    [
      `{"a":${"[".repeat(1e6)}`,
      `${header} nested more than 64 deep at byte 70`,
    ],
    [
      `{"__metadata__":${'{"a":'.repeat(1e5)}`,
      `${header} nested more than 64 deep at byte`,
    ],
    [
      `{"${"n".repeat(1e6)}":1}`,
      `tensor ${"n".repeat(50)}…${
        "n".repeat(49)
      } must be described by an object`,
    ],
    ['{"\\u001b[2J":1}', "tensor \\x1b[2J must be described by an object"],
  ];
  for (const [text, message] of refused) {
    await assertRefused(fileOf(text, 1), message);
  }
  // Unknown fields and null metadata are allowed, as in the format's own reader.
  const fine =
    `{"__metadata__":null,"a":{${good},"more":{"x":[1.5e-3,"\\u00e9"]}}}`;
  const entries = await readSafetensorsHeader(sourceOf(fileOf(fine, 1)));
  assertEquals([...entries.keys()], ["a"]);
});

Deno.test("a header with many tensors and escapes takes a few times its size", async () => {
  // The same in another process, whose heap is limited.
  const script = `
    import { readSafetensorsHeader } from ${
    JSON.stringify(
      new URL("../../lib/checkpoint/safetensors.ts", import.meta.url).href,
    )
  };
    const tensors = 50_000, escapes = String.fromCharCode(92, 34).repeat(8_000_000);
    let text = '{"__metadata__":{"a":"' + escapes + '"},"' + escapes +
      '":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}';
    const parts = [text];
    for (let i = 0; i < tensors; i++) {
      parts.push(',"t' + i + '":{"dtype":"U8","shape":[1],"data_offsets":[' +
        i + "," + (i + 1) + "]}");
    }
    const header = new TextEncoder().encode(parts.join("") + "}");
    parts.length = 0;
    text = "";
    const entries = await readSafetensorsHeader({
      name: "m",
      size: 8 + header.length + tensors,
      read(begin, into) {
        if (begin > 0) into.set(header);
        else new DataView(into.buffer).setBigUint64(0, BigInt(header.length), true);
        return Promise.resolve();
      },
    });
    console.log(entries.size, header.length);
  `;
  const path = await Deno.makeTempFile({ suffix: ".ts" });
  await Deno.writeTextFile(path, script);
  try {
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-check", "--v8-flags=--max-old-space-size=150", path],
    }).output();
    const [out, error] = [stdout, stderr].map((bytes) =>
      new TextDecoder().decode(bytes)
    );
    assertEquals([code, out], [0, "50001 35216750\n"], error);
  } finally {
    await Deno.remove(path);
  }
});
