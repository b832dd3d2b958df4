/** The chat page in a browser: the story model replies, or the test itself does. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { browserTest, type Look } from "../support/browser.ts";
import {
  type ChatPage,
  chatPage,
  DESK,
  PHONE,
  scripted,
} from "../support/chat_page.ts";
import { qwen3Script } from "../support/qwen3_script.ts";

const STORY = "Once upon a time";
const TEXT = ", there was a little girl named Lily";

const draft = ({ page }: ChatPage) =>
  page.getByLabel("Message", { exact: true });

/** What holds a text in the conversation. */
const said = ({ page }: ChatPage, text: string | RegExp, exact = false) =>
  page.locator("#messages").getByText(text, { exact });

/** Sets settings by their labels, as a user does. */
async function set({ page }: ChatPage, values: Record<string, string>) {
  await page.getByRole("button", { name: "Settings" }).click();
  for (const [label, value] of Object.entries(values)) {
    const field = page.getByRole("dialog").getByLabel(label);
    if (label === "Thinking") await field.selectOption(value);
    else await field.fill(value);
  }
  await page.getByRole("button", { name: "Done" }).click();
}

/** Something to wait for, and what ends the wait. */
function gate(): [Promise<void>, () => void] {
  const { promise, resolve } = Promise.withResolvers<void>();
  return [promise, resolve];
}

/** The color of something as red, green, blue. */
async function color(chat: ChatPage, what: string): Promise<number[]> {
  const text = await chat.page.evaluate(what) as string;
  return (text.match(/\d+(\.\d+)?/g) ?? []).slice(0, 3).map(Number);
}
const BACKGROUND = "getComputedStyle(document.body).backgroundColor";

browserTest(
  "a message is answered by the model, with settings and counts",
  async () => {
    await using chat = await chatPage();
    await set(chat, {
      "Temperature": "0",
      "Top p": "0.9",
      "Top k": "20",
      "Max tokens": "8",
      "Seed": "7",
      "System prompt": "A story.",
    });
    await chat.send(STORY);
    assertEquals(chat.asked, [{
      messages: [
        { role: "system", content: "A story." },
        { role: "user", content: STORY },
      ],
      stream: true,
      stream_options: { include_usage: true },
      temperature: 0,
      top_p: 0.9,
      top_k: 20,
      max_tokens: 8,
      seed: 7,
    }]);
    const first = await chat.texts();
    assertEquals(first.length, 2);
    const reply = chat.page.locator(".assistant");
    assertMatch(
      await reply.innerText(),
      /cut: as many tokens as allowed\s+[\d.,]+ tokens\/s · 8 tokens · prompt \d+, \d+ cached · first after [\d.]+ m?s/,
    );
    await chat.send("Then");
    // The reply goes back as it came, with its space.
    const { messages } = chat.asked[1];
    assertEquals(messages.length, 4);
    assertEquals(messages[2].role, "assistant");
    assertEquals(messages[2].content.trim(), first[1].trim());
    await set(chat, { "System prompt": "", "Max tokens": "" });
    await chat.page.getByRole("button", { name: "New" }).click();
    await chat.send(STORY);
    assertEquals(chat.asked[2].messages, [{ role: "user", content: STORY }]);
    assertEquals("max_tokens" in chat.asked[2], false);
    assertStringIncludes((await chat.texts())[1], TEXT.slice(2));
    // The prefix of a conversation hits if its requests go to the same server.
    const ids = chat.headers.map((headers) => headers.get("x-session-id"));
    assert(ids[0] && ids[0] === ids[1] && ids[1] !== ids[2], ids.join());
  },
);

browserTest(
  "a reply streams; Esc and the button stop it, and its text stays",
  async () => {
    await using chat = await chatPage();
    const { page } = chat;
    for (const how of ["key", "button"]) {
      const [never, open] = gate();
      const left = page.waitForEvent("requestfailed");
      chat.answer = scripted(["The first ", "part", never, "no more"]);
      await draft(chat).fill("Go");
      await draft(chat).press("Enter");
      await said(chat, "The first part").last().waitFor();
      // While the reply runs, there is nothing to send.
      await draft(chat).fill("next");
      await draft(chat).press("Enter");
      assertEquals(await draft(chat).inputValue(), "next");
      if (how === "key") await draft(chat).press("Escape");
      else await page.getByRole("button", { name: "Stop" }).click();
      await chat.finished();
      await left;
      open();
      assertEquals((await chat.texts()).at(-1), "The first part");
      assertStringIncludes(
        await page.locator(".assistant").last().innerText(),
        "stopped",
      );
      const focused = "document.activeElement.id";
      assertEquals(await page.evaluate(focused), "draft");
    }
    chat.answer = undefined;
    await chat.send("Again");
    assertEquals(
      chat.asked[2].messages.map((one: { content: string }) => one.content),
      ["Go", "The first part", "Go", "The first part", "Again"],
    );
  },
);

browserTest("an edited message and another try are branches", async () => {
  await using chat = await chatPage();
  const { page } = chat;
  let count = 0;
  chat.answer = () => scripted([`reply ${++count}`])();
  await chat.send("one");
  await chat.send("two");
  // Arrow up in an empty draft edits the last message.
  await draft(chat).press("ArrowUp");
  const editor = page.getByLabel("Edit your message");
  assertEquals(await editor.inputValue(), "two");
  await editor.press("Escape");
  assertEquals(await editor.count(), 0);
  await page.locator(".user").first().getByText("Edit").click();
  await editor.fill("one, better");
  await editor.press("Enter");
  await said(chat, "reply 3").waitFor();
  await chat.finished();
  assertEquals(await chat.texts(), ["one, better", "reply 3"]);
  assertEquals(chat.asked[2].messages.length, 1);
  await page.getByRole("button", { name: "Try again" }).click();
  await said(chat, "reply 4").waitFor();
  await chat.finished();
  assertEquals(await chat.texts(), ["one, better", "reply 4"]);
  const previous = page.getByRole("button", { name: "Previous version" });
  await previous.last().click();
  assertEquals(await chat.texts(), ["one, better", "reply 3"]);
  await previous.first().click();
  assertEquals(await chat.texts(), ["one", "reply 1", "two", "reply 2"]);
  assert(await previous.first().isDisabled());
  await page.getByRole("button", { name: "Next version" }).first().click();
  // A branch is as it was left last.
  assertEquals((await chat.texts())[0], "one, better");
  await chat.send("three");
  const { messages } = chat.asked[4];
  assertEquals(messages.length, 3);
  assertEquals(messages[0].content, "one, better");
});

browserTest("conversations and settings survive a reload", async () => {
  await using chat = await chatPage();
  const { page } = chat;
  const [never, open] = gate();
  chat.answer = scripted(["kept reply"]);
  await set(chat, { "Temperature": "0.25" });
  await chat.send("first conversation");
  await page.getByRole("button", { name: "New" }).click();
  assertEquals(await chat.texts(), []);
  chat.answer = scripted(["half a ", never]);
  await draft(chat).fill("second");
  await draft(chat).press("Enter");
  await said(chat, "half a").waitFor();
  await page.reload();
  open();
  assertEquals((await chat.texts()).map((text) => text.trim()), [
    "second",
    "half a",
  ]);
  assertStringIncludes(
    await page.locator(".assistant").innerText(),
    "stopped",
  );
  const list = page.getByLabel("Conversation", { exact: true }).and(
    page.locator("select"),
  );
  await list.selectOption("first conversation");
  assertEquals(await chat.texts(), ["first conversation", "kept reply"]);
  chat.answer = scripted(["more"]);
  await chat.send("go on");
  assertEquals(chat.asked.at(-1).temperature, 0.25);
  assertEquals(chat.asked.at(-1).messages.length, 3);
  // Another tab has another conversation; a reload shows each its own.
  const other = await page.context().newPage();
  await other.goto(chat.url);
  await other.getByRole("button", { name: "New" }).click();
  await other.close();
  await page.reload();
  assertEquals((await chat.texts())[0], "first conversation");
  page.on("dialog", (dialog) => dialog.accept());
  await page.getByRole("button", { name: "Delete" }).click();
  assertEquals((await chat.texts())[0], "second");
  assertEquals(await list.locator("option").count(), 1);
  await page.reload();
  assertEquals((await chat.texts())[0], "second");
});

browserTest(
  "thoughts are folded, and functions get their results",
  async () => {
    await using checkpoint = await qwen3Script(
      '<think>They ask about rain.</think>I look it up:<tool_call>{"name":"get_weather","arguments":{"city":"Oslo"}}</tool_call>',
    );
    await using chat = await chatPage({ model: checkpoint.path });
    const { page } = chat;
    await page.getByRole("button", { name: "Settings" }).click();
    const tools = page.getByLabel("Functions that the model may call");
    await tools.fill("[{");
    const valid = async () =>
      String(
        await page.evaluate(
          "document.querySelector('[name=tools]').validationMessage",
        ),
      );
    assertMatch(await valid(), /^This is not JSON: /);
    await tools.fill(
      '[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]',
    );
    assertEquals(await valid(), "");
    await page.getByRole("button", { name: "Done" }).click();
    await set(chat, { "Thinking": "on" });
    await chat.send("Does it rain in Oslo?");
    assertEquals(chat.asked[0].chat_template_kwargs, { enable_thinking: true });
    const thoughts = said(chat, "They ask about rain.");
    assertEquals(await thoughts.isVisible(), false);
    await said(chat, "Thoughts", true).click();
    assert(await thoughts.isVisible());
    const reply = await page.locator(".assistant").innerText();
    assertMatch(
      reply,
      /I look it up:\s+Calls get_weather\s+\{\s+"city": "Oslo"\s+\}/,
    );
    chat.answer = scripted(["It rains."]);
    await page.getByLabel("Result of get_weather").fill('{"rain": true}');
    await page.getByRole("button", { name: "Send results" }).click();
    await said(chat, "It rains.").waitFor();
    await chat.finished();
    const [, calls, result] = chat.asked[1].messages;
    assertEquals(calls.content, "I look it up:");
    assertEquals(calls.reasoning_content.trim(), "They ask about rain.");
    assertEquals(result, {
      role: "tool",
      tool_call_id: calls.tool_calls[0].id,
      content: '{"rain": true}',
    });
    // The server takes them.
    chat.answer = undefined;
    await set(chat, { "Thinking": "off" });
    await chat.send("And now?");
    assertEquals(await page.locator(".problem").count(), 0);
  },
);

const NASTY = `<script>document.title = "broken"</script>
<img src=x onerror='document.title = "broken"'> [link](javascript:alert(1)) ![i](https://example.com/x.png)

**<b onclick=alert(1)>bold</b>** and \`<i>code</i>\`, \`\`a \` b\`\`, *soft* 2*3*4 **open

- one
  - inner <u>two</u>
- three

7. seven

# Head <s>ing</s>

\`\`\`html"><script>
</code></pre><script>document.title = "broken"</script>
\`\`\``;

browserTest("what the model writes stays text", async () => {
  await using chat = await chatPage();
  const { page } = chat;
  chat.answer = scripted([
    { reasoning_content: "<script>thought</script><img src=x>" },
    ...NASTY,
    {
      tool_calls: [{
        index: 0,
        id: "a",
        type: "function",
        function: { name: "<b>f</b>", arguments: "{}" },
      }],
    },
    { tool_calls: [{ index: 0, function: { arguments: "<img src=y>" } }] },
  ]);
  await chat.send("<script>mine</script>");
  const shown = page.locator(".assistant .body");
  assertEquals(
    await shown.locator("script, img, a, b, i, u, s").count(),
    0,
  );
  assertEquals(await page.title(), "test-model");
  assertEquals(await shown.locator("strong").allInnerTexts(), [
    "<b onclick=alert(1)>bold</b>",
    "<b>f</b>",
  ]);
  assertEquals(await shown.locator(".text p code").allInnerTexts(), [
    "<i>code</i>",
    "a ` b",
  ]);
  assertEquals(await shown.locator("em").allInnerTexts(), ["soft"]);
  assertEquals(
    await shown.locator(".text > ul > li > ul > li").allInnerTexts(),
    [
      "inner <u>two</u>",
    ],
  );
  assertEquals(await shown.locator("ol").getAttribute("start"), "7");
  assertEquals(await shown.locator(".heading").innerText(), "Head <s>ing</s>");
  assertEquals(
    await shown.locator(".text .code pre").innerText(),
    '</code></pre><script>document.title = "broken"</script>',
  );
  assertStringIncludes(await shown.innerText(), "**open");
  assertEquals((await chat.texts())[0], "<script>mine</script>");
  await page.getByRole("button", { name: "Copy code" }).click();
  const copied = () => page.evaluate("navigator.clipboard.readText()");
  assertMatch(String(await copied()), /^<\/code><\/pre><script>/);
  await page.locator(".assistant").getByRole("button", {
    name: "Copy",
    exact: true,
  }).click();
  assertEquals(await copied(), NASTY);
});

browserTest(
  "the page runs no script and reaches no host but its own",
  async () => {
    await using chat = await chatPage();
    const { page, url } = chat;
    const response = await fetch(url), html = await response.text();
    const policy = response.headers.get("content-security-policy")!;
    assertMatch(policy, /default-src 'none'.*script-src 'sha256-[\w+/=]+'/);
    assert(!/unsafe|https?:|\*/.test(policy), policy);
    assert(!/(src|href)="(?!data:)/.test(html), "the page loads a file");
    const head = await fetch(url, { method: "HEAD" });
    assertEquals([head.status, await head.text()], [200, ""]);
    const attempts = {
      script: `(() => { const s = document.createElement("script");
      try { s.textContent = "window.broken = 1" } catch { return 0 }
      document.body.append(s); return window.broken ?? 0 })()`,
      markup:
        `(() => { try { document.body.innerHTML = "<b>x</b>"; return 1 } catch { return 0 } })()`,
      host: `fetch("https://example.com").then(() => 1, () => 0)`,
    };
    for (const [what, attempt] of Object.entries(attempts)) {
      assertEquals(await page.evaluate(attempt), 0, what);
    }
    assert(chat.complaints.length >= 2); // the browser reports each
    chat.complaints.length = 0;
  },
);

browserTest("errors of the server are shown with their message", async () => {
  await using chat = await chatPage({ context: 64 });
  const { page } = chat;
  const problem = page.getByRole("alert");
  await set(chat, { "Top p": "0", "Max tokens": "4" });
  await chat.send(STORY);
  assertMatch(await problem.innerText(), /top_p/);
  await set(chat, { "Top p": "" });
  await page.getByRole("button", { name: "Try again" }).click();
  await said(chat, /there was|little|girl|\w+/).first().waitFor();
  await chat.finished();
  assertEquals(await problem.count(), 0);
  await chat.send("a very long story ".repeat(60));
  assertMatch(await problem.innerText(), /context.*room for/);
  assertMatch(await problem.innerText(), /Begin a new conversation/);
  // An edit helps, and the failed reply is not sent.
  chat.answer = () =>
    Response.json({ error: { message: "Cannot queue: too many wait" } }, {
      status: 429,
      headers: { "retry-after": "3" },
    });
  await draft(chat).press("ArrowUp");
  await page.getByLabel("Edit your message").fill("short");
  await page.keyboard.press("Enter");
  await said(chat, "too many wait (try again in 3 s)").waitFor();
  chat.answer = scripted(["partly", { content: " so" }], { done: false });
  await page.getByRole("button", { name: "Try again" }).last().click();
  await said(chat, "broke before the end").waitFor();
  assertEquals((await chat.texts()).at(-1), "partly so");
});

browserTest(
  "a server that is gone is noticed, and its return too",
  async () => {
    await using chat = await chatPage();
    const { page } = chat;
    const state = page.locator("#state");
    let gone = true, loading = false;
    await page.route(
      "**/health",
      (route) =>
        gone
          ? route.abort()
          : loading
          ? route.fulfill({ status: 503, json: { status: "loading" } })
          : route.continue(),
    );
    await page.route(
      "**/v1/chat/completions",
      (route) => gone ? route.abort() : route.continue(),
    );
    await draft(chat).fill(STORY);
    await draft(chat).press("Enter");
    await page.getByRole("alert").waitFor();
    assertMatch(await page.getByRole("alert").innerText(), /does not answer/);
    await state.getByText("Is it still running?").waitFor();
    loading = true;
    gone = false;
    await state.getByText("it is loading").waitFor();
    loading = false;
    await state.waitFor({ state: "hidden" });
    await set(chat, { "Max tokens": "3" });
    await page.getByRole("button", { name: "Try again" }).click();
    await said(chat, "3 tokens").waitFor();
    await chat.crash();
    await draft(chat).fill("more");
    await draft(chat).press("Enter");
    await state.getByText("Is it still running?").waitFor();
    assertEquals((await chat.texts())[2], "more");
  },
);

browserTest(
  "the page asks for the API key, and keeps it for this tab",
  async () => {
    await using chat = await chatPage({ options: { apiKey: "secret" } });
    const { page } = chat;
    const dialog = page.getByRole("dialog", { name: /API key/ });
    const key = dialog.getByLabel("API key");
    await key.fill("wrong");
    await key.press("Enter");
    await dialog.getByText("the API key is wrong").waitFor();
    await key.fill("secret");
    await key.press("Enter");
    await page.getByRole("heading", { name: "test-model" }).waitFor();
    await set(chat, { "Max tokens": "3" });
    await chat.send(STORY);
    await said(chat, "3 tokens").waitFor();
    await page.reload();
    await page.getByRole("heading", { name: "test-model" }).waitFor();
    assertEquals(await dialog.isVisible(), false);
    const kept = await page.evaluate("JSON.stringify({ ...localStorage })");
    assert(!String(kept).includes("secret"));
  },
);

browserTest("everything works with the keyboard alone", async () => {
  await using chat = await chatPage();
  const { page } = chat;
  chat.answer = scripted(["fine"]);
  const press = async (...keys: string[]) => {
    for (const key of keys) await page.keyboard.press(key);
  };
  const focused = () =>
    page.evaluate(
      `(() => { const e = document.activeElement; return e.labels?.[0]?.textContent.trim() || e.ariaLabel || e.textContent.trim() || e.id })()`,
    );
  assertEquals(await focused(), "Message"); // from the beginning
  await page.keyboard.type("two");
  await press("Shift+Enter");
  await page.keyboard.type("lines");
  await press("Enter");
  await said(chat, "fine").waitFor();
  await chat.finished();
  assertEquals(chat.asked[0].messages[0].content, "two\nlines");
  // Back from the draft: the last reply's buttons, then those of the message.
  await press("Shift+Tab");
  assertEquals(await focused(), "Try again");
  await press("Shift+Tab", "Shift+Tab");
  assertEquals(await focused(), "Edit");
  await press("Enter");
  assertEquals(await focused(), "Edit your message");
  await page.keyboard.type("!");
  await press("Escape");
  assertEquals(await focused(), "Edit");
  await press("Enter");
  await press("End");
  await page.keyboard.type("?");
  await press("Enter");
  await said(chat, "2/2").waitFor();
  await chat.finished();
  assertEquals(await focused(), "Message");
  // From the top.
  await page.getByRole("switch").focus();
  const order: unknown[] = [];
  for (let i = 0; i < 4; i++) {
    await press("Tab");
    order.push(await focused());
  }
  assertEquals(order, ["Conversation", "New", "Delete", "Settings"]);
  await press("Enter");
  assertEquals(await focused(), "System prompt");
  await press("Escape");
  assertEquals(await focused(), "Settings");
  await press("Tab"); // the conversation scrolls by the keyboard
  assertEquals(await page.evaluate("document.activeElement.id"), "scroller");
});

browserTest(
  "screen readers get names, roles and finished replies",
  async () => {
    await using chat = await chatPage();
    const { page } = chat;
    const [held, open] = gate();
    chat.answer = scripted(["half ", held, "and whole\n\n```ts\n1\n```"]);
    await draft(chat).fill("hello");
    await draft(chat).press("Enter");
    await said(chat, "half").waitFor();
    const spoken = page.locator("[aria-live=polite]");
    assertEquals(await spoken.innerText(), ""); // not in pieces
    open();
    await chat.finished();
    assertMatch((await spoken.textContent())!, /^half and whole/);
    assertStringIncludes(
      await page.locator(".stats").innerText(),
      "56 tokens · prompt 1,234, 1,200 cached",
    );
    for (
      const [role, name] of [
        ["main", "Conversation"],
        ["navigation", "Conversations"],
        ["combobox", "Conversation"],
        ["switch", "Dark"],
        ["textbox", "Message"],
        ["heading", "test-model"],
        ["heading", "You"],
        ["heading", "Reply"],
        ["region", "Code ts"],
      ] as const
    ) {
      const found = page.getByRole(role, { name, exact: true });
      assertEquals(await found.count(), 1, `${role} ${name}`);
    }
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByRole("dialog", { name: "Settings" }).waitFor();
    const nameless = await page.evaluate(
      `[...document.querySelectorAll("button, input, select, textarea, dialog, pre, summary")]
      .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.getAttribute("aria-labelledby")))
      .map((e) => e.outerHTML)`,
    );
    assertEquals(nameless, []);
    const doubles = await page.evaluate(
      `(() => { const ids = [...document.querySelectorAll("[id]")].map((e) => e.id); return ids.length - new Set(ids).size })()`,
    );
    assertEquals(doubles, 0);
    assertEquals(await page.getAttribute("html", "lang"), "en");
  },
);

/** Contrast of two colors (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio). */
function contrast(a: readonly number[], b: readonly number[]): number {
  const light = (color: readonly number[]) => {
    const [r, g, blue] = color.map((value) => {
      const c = value / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * blue + 0.05;
  };
  const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
  return high / low;
}

const styleOf = (selector: string, property: string) =>
  `getComputedStyle(document.querySelector(${
    JSON.stringify(selector)
  })).${property}`;

browserTest(
  "dark and light: the system's, until the switch says otherwise",
  async () => {
    for (const system of ["light", "dark"] as const) {
      await using chat = await chatPage({
        look: { ...DESK, colorScheme: system },
      });
      const { page } = chat;
      const isDark = async () => (await color(chat, BACKGROUND))[0] < 60;
      const toggle = page.getByRole("switch", { name: "Dark" });
      const stated = () => toggle.getAttribute("aria-checked");
      chat.answer = () =>
        Response.json({ error: { message: "no" } }, { status: 400 });
      await chat.send("x");
      for (const dark of [system === "dark", system !== "dark"]) {
        assertEquals([await isDark(), await stated()], [dark, `${dark}`]);
        for (
          const [front, back] of [
            [styleOf("body", "color"), BACKGROUND],
            [styleOf(".who", "color"), BACKGROUND],
            [
              styleOf(".user .body", "color"),
              styleOf(".user .body", "backgroundColor"),
            ],
            [
              styleOf(".problem", "color"),
              styleOf(".problem", "backgroundColor"),
            ],
            [styleOf("#send", "color"), styleOf("#send", "backgroundColor")],
            [styleOf("#new", "color"), styleOf("#new", "backgroundColor")],
          ]
        ) {
          const ratio = contrast(
            await color(chat, front),
            await color(chat, back),
          );
          assert(ratio >= 4.5, `${front}: ${ratio}`);
        }
        await toggle.click();
      }
      assertEquals(await isDark(), system === "dark");
      await toggle.click();
      await page.reload();
      assertEquals(await isDark(), system !== "dark", "the choice is kept");
      await toggle.click();
      await page.emulateMedia({
        colorScheme: system === "dark" ? "light" : "dark",
      });
      assertEquals(await isDark(), system !== "dark", "the system's again");
    }
  },
);

browserTest("nothing is wider than a phone, whatever is written", async () => {
  const phones: Look[] = [PHONE, { viewport: { width: 320, height: 568 } }];
  for (const look of phones) {
    await using chat = await chatPage({ look });
    const { page } = chat;
    const long = "x".repeat(300);
    chat.answer = scripted([
      { reasoning_content: long },
      `${long} **${long}** \`${long}\`\n\n- ${long}\n\n\`\`\`\n${long}\n\`\`\`\n\n# ${long}`,
      {
        tool_calls: [{
          index: 0,
          id: "a",
          type: "function",
          function: { name: long, arguments: `{"a":"${long}"}` },
        }],
      },
    ]);
    await chat.send(long);
    await said(chat, "Thoughts").click();
    await page.evaluate(
      `document.getElementById("model").textContent = "${long}"`,
    );
    const check = async (what: string) => {
      const wide = await page.evaluate(
        `[...document.querySelectorAll("body *:not(pre *)")].filter((e) => e.checkVisibility() && !e.closest(".unseen") && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 80))`,
      );
      assertEquals(wide, [], what);
    };
    await check("messages");
    await page.locator(".user").getByText("Edit").click();
    await check("editing");
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Settings" }).click();
    await check("settings");
    const small = await page.evaluate(
      `[...document.querySelectorAll("button, select, input")].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 24).map((e) => e.outerHTML)`,
    );
    assertEquals(small, [], "too small for a finger");
  }
});
