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
