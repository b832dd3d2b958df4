import { assertEquals, assertThrows } from "@std/assert";
import { exactJson, parseExactJson, requireJsonValue } from "../lib/json.ts";

Deno.test("JSON is parsed without loss", () => {
  const texts = [
    '{"b":1,"a":[{"c":null}],"":"x"}',
    '{"2":"two","1":"one","a":{"10":{"9":1,"8":2}}}',
    "[12345678901234567890,-9007199254740993,9007199254740991,1.5,1e+30]",
    '{"id":12345678901234567890,"2":"\\"1\\": ","1":"_"}',
    '{"__proto__":1,"1":2,"_":3}',
    '"\\"1\\":"',
    "null",
  ];
  for (const text of texts) {
    assertEquals(exactJson(parseExactJson(text)), text);
  }
  // Only where it is needed.
  assertEquals(parseExactJson('{"a": {"b": 1}}'), { a: { b: 1 } });
  assertEquals(parseExactJson('{"a": {"1": 2}}'), { a: new Map([["1", 2]]) });
  // Floats that are whole, which a number does not tell from integers.
  const numbers = parseExactJson('[1, 1.0, {"1": -2e1}]') as unknown[];
  assertEquals(numbers, [1, Object(1), new Map([["1", Object(-20)]])]);
  assertEquals(exactJson(numbers), '[1,1,{"1":-20}]');
  for (const text of ["", "{", '{"1": }', '{"1": 1,}', '{1: "1": 2}']) {
    assertThrows(() => parseExactJson(text), SyntaxError);
  }
});

Deno.test("values that are not of JSON's types are named with their path", () => {
  const fine = [null, 1, "a", true, [], {}, { a: [{ b: undefined }] }];
  for (const value of fine) requireJsonValue(value, "it");
  requireJsonValue(Object.create(null), "it");
  requireJsonValue(new Map([["1", [new Map()]]]), "it");
  const refused: [value: unknown, message: string][] = [
    [undefined, "it is undefined, must be a JSON value"],
    [{ a: [0, NaN] }, "it.a[1] is NaN, must be"],
    [{ a: Infinity }, "it.a is Infinity"],
    [[1n], "it[0] is a bigint"],
    [[undefined], "it[0] is undefined"],
    [{ f() {} }, "it.f is a function"],
    [Symbol(), "it is a symbol"],
    [{ a: new Date() }, "it.a is a Date"],
    [new Map([["a", new Set()]]), "it.a is a Set"],
    [new Map([[1, 1]]), "it is a Map"],
    [new (class Schema {})(), "it is a Schema"],
  ];
  for (const [value, message] of refused) {
    assertThrows(() => requireJsonValue(value, "it"), Error, message);
  }
  const deep: unknown[] = [];
  let inner = deep;
  for (let i = 0; i < 300; i++) inner.push(inner = []);
  assertThrows(
    () => requireJsonValue(deep, "it"),
    Error,
    "it nests deeper than 200 levels",
  );
});
