import { assert, assertEquals, assertThrows } from "@std/assert";
import { TextStream } from "../../lib/text/text_stream.ts";

/** A tokenizer of these bytes or texts, with ids 0, 1, 2, … */
function tokens(...parts: (string | number[])[]) {
  const utf8 = new TextEncoder();
  return {
    ids: parts.map((_, id) => id),
    tokenizer: {
      specialIds: new Set<number>(),
      bytes: (id: number) => {
        const part = parts[id];
        return typeof part === "string"
          ? utf8.encode(part)
          : Uint8Array.from(part);
      },
    },
  };
}

/** What each push and the flush return, and whether the text stopped. */
function pieces(parts: (string | number[])[], stop: string[]) {
  const { ids, tokenizer } = tokens(...parts);
  const stream = new TextStream(tokenizer, { stop });
  const texts = ids.map((id) => stream.push(id).text);
  return { texts: [...texts, stream.flush()], stopped: stream.stopped };
}

Deno.test("text is held back until its UTF-8 is complete", () => {
  const [a, b, c, d] = new TextEncoder().encode("😀");
  assertEquals(pieces(["x", [a], [b, c], [d], "y"], []).texts, [
    "x",
    "",
    "",
    "😀",
    "y",
    "",
  ]);
  assertEquals(pieces([[a, b]], []).texts, ["", "\uFFFD"]);
  assertEquals(pieces([[a, b], "y"], []).texts, ["", "\uFFFDy", ""]);
  assertEquals(pieces(["\uFEFF", "y"], []).texts, ["\uFEFF", "y", ""]);
});

Deno.test("text is held back while it may be the start of a stop string", () => {
  assertEquals(pieces(["a", "E", "N", "d", "END", "z"], ["END"]), {
    texts: ["a", "", "", "ENd", "", "", ""],
    stopped: true,
  });
  assertEquals(pieces(["xEN"], ["END"]), {
    texts: ["x", "EN"],
    stopped: false,
  });
  // A partial match that turns out to start later: "aab" in "aaab".
  assertEquals(pieces(["a", "a", "a", "b"], ["aab"]), {
    texts: ["", "", "a", "", ""],
    stopped: true,
  });
});

Deno.test("of several stop strings, the one that starts first ends the text", () => {
  assertEquals(pieces(["1ab", "c"], ["abc", "ab"]).texts, ["1", "", ""]);
  // "bc" is complete, but "abcd" would start before it.
  assertEquals(pieces(["1abc", "d2"], ["abcd", "bc"]), {
    texts: ["1", "", ""],
    stopped: true,
  });
  assertEquals(pieces(["1abc", "e2"], ["abcd", "bc"]), {
    texts: ["1", "a", ""],
    stopped: true,
  });
  assertEquals(pieces(["1abc"], ["abcd", "bc"]), {
    texts: ["1", "a"],
    stopped: true,
  });
});

Deno.test("a stop string may begin and end inside tokens and characters", () => {
  const [a, b] = new TextEncoder().encode("é");
  assertEquals(
    pieces([[0x78, a], [b, 0x79], "z"], ["éy"]),
    { texts: ["x", "", "", ""], stopped: true },
  );
});

/** Texts of a stream in which `special` parts are special tokens. */
function withSpecial(
  parts: (string | number[])[],
  special: number[],
  stop: string[] = [],
  ends: number[] = [],
) {
  const { ids, tokenizer } = tokens(...parts);
  const specialIds = new Set(special);
  const stream = new TextStream({ ...tokenizer, specialIds }, { stop });
  const texts = ids.map((id) => stream.push(id, ends.includes(id)).text);
  return { text: texts.join("") + stream.flush(), stopped: stream.stopped };
}

Deno.test("special tokens are left out, but stop strings see them", () => {
  const parts = ["a\n", "<|im_end|>", "\n", "<|im_start|>", "user"];
  const special = [1, 3];
  assertEquals(withSpecial(parts, special), {
    text: "a\n\nuser",
    stopped: false,
  });
  const stopped: [stop: string, text: string][] = [
    ["<|im_end|>", "a\n"], // is one
    ["\n<|im_end|>", "a"], // ends with one
    ["<|im_start|>user", "a\n\n"], // begins with one
    ["\n<|im_start|>user", "a\n"], // spans one
    ["<|im_end|>\n<|im_start|>", "a\n"], // spans two
    ["end|>", "a\n"], // begins inside one, of which nothing is shown
    ["|>\n<|", "a\n"],
    ["start|>u", "a\n\n"],
  ];
  for (const [stop, text] of stopped) {
    const expected = { text, stopped: true };
    assertEquals(withSpecial(parts, special, [stop]), expected, stop);
  }
  // Held as the beginning of a stop string that does not come.
  for (const stop of ["\n<|im_start|>userX", "a\n<|im_end|>\n<|im_start|>x"]) {
    assertEquals(withSpecial(parts, special, [stop]).text, "a\n\nuser", stop);
  }
});

Deno.test("an end token is left out and seen even if it is not special", () => {
  const parts = ["a\n", "</s>"];
  assertEquals(withSpecial(parts, [], [], [1]).text, "a\n");
  assertEquals(withSpecial(parts, [], ["\n</s>"], [1]), {
    text: "a",
    stopped: true,
  });
});

Deno.test("a character goes on after a special token, as in decode", () => {
  const [a, b] = new TextEncoder().encode("é");
  assertEquals(withSpecial([[a], "<|x|>", [b]], [1]).text, "é");
});

Deno.test("stop strings that can never match are refused", () => {
  const { tokenizer } = tokens();
  for (const stop of ["", "\ud83d"]) {
    assertThrows(
      () => new TextStream(tokenizer, { stop: ["ok", stop] }),
      Error,
      `Cannot generate: stop is ${
        JSON.stringify(stop)
      }, a stop string must be `,
    );
  }
});

Deno.test("any split into tokens gives the text up to the first stop string", () => {
  // A small alphabet, so that stop strings overlap and repeat; 0xff is invalid UTF-8.
  const alphabet = ["a", "b", "é", "😀", "\n"].map((character) => [
    ...new TextEncoder().encode(character),
  ]);
  alphabet.push([0xff], [0xf0, 0x9f]);
  let state = 1;
  const random = (n: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * n);
  };
  let stops = 0;
  for (let trial = 0; trial < 5000; trial++) {
    const bytes = Array.from(
      { length: random(24) },
      () => alphabet[random(alphabet.length)],
    ).flat();
    const whole = new TextDecoder().decode(Uint8Array.from(bytes));
    const stop = Array.from({ length: random(4) }, () =>
      Array.from(
        { length: 1 + random(3) },
        () => ["a", "b", "é", "😀", "\uFFFD"][random(5)],
      ).join(""));
    const starts = stop.map((s) => whole.indexOf(s)).filter((i) => i >= 0);
    const expected = whole.slice(0, Math.min(whole.length, ...starts));

    const parts: number[][] = [];
    for (let i = 0; i < bytes.length;) {
      const length = random(5);
      parts.push(bytes.slice(i, i + length));
      i += length;
    }
    const { texts, stopped } = pieces(parts, stop);
    const context = JSON.stringify({ parts, stop });
    assertEquals(texts.join(""), expected, context);
    assertEquals(stopped, starts.length > 0, context);
    assert(texts.every((text) => text.isWellFormed()), context);
    if (stopped) stops++;
  }
  assert(stops > 1000 && stops < 4000, `${stops} trials stopped`);
});

Deno.test("any split, with special tokens in it, stops at the first stop string", () => {
  let state = 7;
  const random = (n: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * n);
  };
  let stops = 0;
  for (let trial = 0; trial < 3000; trial++) {
    // "<a>" is a special token or ordinary text, cut anywhere.
    const parts: string[] = [], special: number[] = [];
    for (let n = random(8); n > 0; n--) {
      if (random(3) === 0) special.push(parts.length);
      const text = special.at(-1) === parts.length
        ? "<a>"
        : ["a", "<", ">", "<a", "a>", "<a>", "aa"][random(7)];
      parts.push(text);
    }
    const stop = Array.from(
      { length: 1 + random(2) },
      () =>
        Array.from({ length: 1 + random(4) }, () => "<a>"[random(3)]).join(""),
    );
    const whole = parts.join("");
    const starts = stop.map((s) => whole.indexOf(s)).filter((i) => i >= 0);
    const end = Math.min(whole.length, ...starts);
    let at = 0, expected = "";
    for (const [i, part] of parts.entries()) {
      if (!special.includes(i)) {
        expected += part.slice(0, Math.max(0, end - at));
      }
      at += part.length;
    }
    const actual = withSpecial(parts, special, stop);
    const context = JSON.stringify({ parts, special, stop });
    assertEquals(
      actual,
      { text: expected, stopped: starts.length > 0 },
      context,
    );
    if (actual.stopped) stops++;
  }
  assert(stops > 500 && stops < 2900, `${stops} trials stopped`);
});
