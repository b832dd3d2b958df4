/**
 * The chat page: conversations as trees of messages, kept in the browser, and replies
 * streamed from the server. page.ts embeds this script after markdown.js.
 */
"use strict";
// deno-lint-ignore-file no-undef

const $ = (id) => document.getElementById(id);
const draft = $("draft"),
  scroller = $("scroller"),
  settingsForm = $("settings").firstElementChild;

// --- What the browser keeps ---------------------------------------------------------------

const CHAT = "qwen3.chat.", SETTINGS = "qwen3.settings", THEME = "qwen3.theme";
const CURRENT = "qwen3.current", KEY = "qwen3.key";

/** Reads JSON; undefined if there is none. */
function load(name, storage = localStorage) {
  try {
    return JSON.parse(storage.getItem(name)) ?? undefined;
  } catch {
    return undefined;
  }
}

function store(name, value, storage = localStorage) {
  try {
    storage.setItem(name, JSON.stringify(value));
  } catch (error) {
    state(`Cannot keep the conversation: ${error.message}`);
  }
}

const newChat = () => ({
  id: crypto.randomUUID?.() ?? `${Math.random()}`.slice(2),
  nodes: {},
  leaf: null,
});

/** Every conversation that has messages, the latest first. */
function chats() {
  return Object.keys(localStorage).filter((name) => name.startsWith(CHAT)).map((
    name,
  ) => load(name))
    .filter((one) => one?.nodes).sort((a, b) => b.changed - a.changed);
}

function save() {
  store(CURRENT, chat.id);
  store(CURRENT, chat.id, sessionStorage);
  if (chat.leaf !== null) {
    store(CHAT + chat.id, { ...chat, changed: Date.now() });
  }
}

/**
 * The conversation that is shown: messages by id, and the last one of the branch shown. Each
 * tab has its own; a new tab begins with the one that was shown last.
 */
let chat = load(CHAT + (load(CURRENT, sessionStorage) ?? load(CURRENT))) ??
  newChat();
/** The reply that is being written, if any. */
let running;
/** The message that is being edited, if any. */
let editing;
let settings = load(SETTINGS) ?? {};
let contextSize;
const unfolded = new Set();

// --- The tree -----------------------------------------------------------------------------

const siblings = ({ parent }) =>
  Object.values(chat.nodes).filter((one) => one.parent === parent);

/** The messages from the first to one of them. */
function pathTo(id) {
  const path = [];
  for (let node = chat.nodes[id]; node; node = chat.nodes[node.parent]) {
    path.unshift(node);
  }
  return path;
}

function add(parent, fields) {
  const id = `m${Object.keys(chat.nodes).length}`;
  chat.nodes[id] = { id, parent, ...fields };
  chat.leaf = id;
  return chat.nodes[id];
}

/** Shows another version of a message, with what followed it last. */
function show(node) {
  for (let next = node; next;) {
    chat.leaf = next.id;
    next = Object.values(chat.nodes).findLast(({ parent }) =>
      parent === chat.leaf
    );
  }
  save();
}

// --- The server ---------------------------------------------------------------------------

/** What went wrong, as the page shows it. */
class Problem extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/** Sends a request; asks for the API key if the server does. */
async function ask(path, init) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = {
      "content-type": "application/json",
      "x-session-id": chat.id,
      ...(key && { authorization: `Bearer ${key}` }),
    };
    const response = await reach(() => fetch(path, { ...init, headers }));
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401 || !await askKey(problem.message)) {
      throw problem;
    }
  }
}

/** Does what needs the network; its failures say so. */
async function reach(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    watch();
    throw new Problem(
      "Cannot reach the server: it does not answer.",
      "unreachable",
    );
  }
}

async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  const {
    message = `The server answered with status ${response.status}.`,
    code,
  } = body.error ?? {};
  const wait = response.headers.get("retry-after");
  if (response.status === 503) watch();
  return new Problem(
    wait ? `${message} (try again in ${wait} s)` : message,
    code,
  );
}

/** Yields the events of a stream, those that came together as one list. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "";;) {
    const { value, done } = await reach(() => reader.read());
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    const data = events.filter((event) => event.startsWith("data: ")).map((
      event,
    ) => event.slice(6));
    if (data.length > 0) yield data;
  }
}

/** Shows the key's dialog; true once there is a key. */
function askKey(message) {
  const dialog = $("ask-key"), form = dialog.firstElementChild;
  const had = sessionStorage.getItem(KEY) !== null;
  $("key-problem").textContent = had ? message : "";
  form.reset();
  dialog.returnValue = "";
  dialog.showModal();
  form.elements.key.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok";
      if (given) sessionStorage.setItem(KEY, form.elements.key.value);
      resolve(given);
    }, { once: true });
  });
}

$("no-key").addEventListener("click", () => $("ask-key").close());

let watching = false;

/** Asks for the model until the server answers, and says what keeps it from that. */
async function watch() {
  if (watching) return;
  watching = true;
  for (;; await new Promise((done) => setTimeout(done, 1500))) {
    try {
      const response = await fetch("health");
      const { status } = await response.json();
      if (response.ok) break;
      state(`The server cannot answer yet: it is ${status}.`);
    } catch {
      state(
        "Cannot reach the server: it does not answer. Is it still running?",
      );
    }
  }
  watching = false;
  state("");
  try {
    const { data: [model] } = await (await ask("v1/models")).json();
    contextSize = model.max_model_len;
    $("model").textContent = document.title = model.id;
    showRoom();
  } catch (error) {
    if (error.code !== "unreachable") state(error.message);
  }
}

/** Says what holds for the whole page, in a line above the conversation. */
function state(text) {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").hidden = text === "";
}

// --- Replies ------------------------------------------------------------------------------

/** A message as the server reads it. */
function messageOf({ role, text, reasoning, calls, call }) {
  if (role === "tool") return { role, tool_call_id: call, content: text };
  if (!calls?.length) return { role, content: text };
  // Thoughts before a call belong to what follows it.
  return {
    role,
    content: text,
    ...(reasoning && { reasoning_content: reasoning }),
    tool_calls: calls,
  };
}

function requestFor(path) {
  const { system, thinking, tools, ...numbers } = settings;
  const sent = path.filter(({ role, text, calls }) =>
    role !== "assistant" || text || calls?.length
  );
  return {
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...sent.map(messageOf),
    ],
    stream: true,
    stream_options: { include_usage: true },
    ...Object.fromEntries(
      Object.entries(numbers).map(([name, value]) => [name, Number(value)]),
    ),
    ...(thinking &&
      { chat_template_kwargs: { enable_thinking: thinking === "on" } }),
    ...(tools && { tools: JSON.parse(tools) }),
  };
}

/** Has the model reply to a message. */
async function reply(parent) {
  const path = pathTo(parent);
  const node = add(parent, {
    role: "assistant",
    text: "",
    reasoning: "",
    calls: [],
    note: "stopped",
  });
  const controller = new AbortController();
  running = { node, controller };
  render();
  toEnd();
  let last = Date.now();
  try {
    const response = await ask("v1/chat/completions", {
      method: "POST",
      body: JSON.stringify(requestFor(path)),
      signal: controller.signal,
    });
    await read(response, node, () => {
      schedule(node);
      if (Date.now() - last < 1000) return;
      last = Date.now();
      save();
    });
  } catch (error) {
    if (controller.signal.aborted) node.note = "stopped";
    else {
      node.note = "";
      node.problem = error.message;
      node.code = error.code;
    }
  }
  if (running?.node !== node) return; // another conversation is shown
  running = undefined;
  save();
  const stays = document.activeElement !== $("stop");
  render();
  if (!stays) draft.focus();
  // Problems are alerts of their own.
  if (!node.problem) {
    announce(`${node.text || "The reply has no text."} ${node.note}`);
  }
}

/** Reads a stream into a message. */
async function read(response, node, changed) {
  const began = performance.now();
  let first, last, chunks = 0, before = 0, early = 0, usage, ended = false;
  for await (const burst of eventsOf(response)) {
    for (const data of burst) {
      if (data === "[DONE]") {
        ended = true;
        continue;
      }
      const event = JSON.parse(data);
      if (event.error) throw new Problem(event.error.message, event.error.code);
      usage = event.usage ?? usage;
      const [choice] = event.choices;
      if (choice?.finish_reason) {
        node.note = choice.finish_reason === "length"
          ? "cut: as many tokens as allowed"
          : "";
      }
      if (choice && take(node, choice.delta)) chunks++;
    }
    if (chunks === before) continue;
    before = chunks;
    last = performance.now();
    first ??= last;
    if (last === first) early = chunks;
    changed();
  }
  if (!ended) {
    watch();
    throw new Problem(
      "The connection to the server broke before the end of the reply.",
      "unreachable",
    );
  }
  if (!usage) return;
  // Of the tokens that came first it is not known how long they took.
  const part = last > first ? (chunks - early) / chunks : 1;
  const seconds = (last - (last > first ? first : began)) / 1000;
  node.stats = {
    tokens: usage.completion_tokens,
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    rate: chunks === 0 ? 0 : usage.completion_tokens * part / seconds,
    first: chunks === 0 ? 0 : (first - began) / 1000,
  };
}

/** Adds what a chunk brings; whether it brings anything. */
function take(
  node,
  { content, reasoning_content: thought, tool_calls: calls = [] },
) {
  node.text += content ?? "";
  node.reasoning += thought ?? "";
  for (const { index, id, function: { name, arguments: text = "" } } of calls) {
    node.calls[index] ??= {
      id,
      type: "function",
      function: { name, arguments: "" },
    };
    node.calls[index].function.arguments += text;
  }
  return Boolean(content || thought || calls.length);
}

function send() {
  const text = draft.value;
  if (running || text.trim() === "") return;
  draft.value = "";
  fit(draft);
  save();
  reply(add(chat.leaf, { role: "user", text }).id);
}

function stop() {
  running?.controller.abort();
}

// --- What is seen -------------------------------------------------------------------------

function button(text, act, properties = {}) {
  const node = el("button", { type: "button", ...properties }, text);
  node.addEventListener("click", act);
  return node;
}

/** What can have the focus in a message. */
const FOCUSABLE = "button, summary, pre, textarea";

/** Draws the branch; `focus` finds what has the focus then, by default what had it. */
function render(focus) {
  const path = pathTo(chat.leaf), held = document.activeElement;
  const id = held.closest(".message")?.id;
  const at = id && [...$(id).querySelectorAll(FOCUSABLE)].indexOf(held);
  const follows = isAtEnd();
  $("messages").replaceChildren(...path.map(messageElement));
  const asked = askedCalls(path);
  if (asked.length > 0) $("messages").append(resultForm(asked));
  $("empty").hidden = path.length > 0;
  $("send").hidden = running !== undefined;
  $("stop").hidden = running === undefined;
  showRoom();
  showChats();
  if (follows) toEnd();
  if (focus) document.querySelector(focus)?.focus();
  else if (id) $(id)?.querySelectorAll(FOCUSABLE)[at]?.focus();
}

function showChats() {
  const all = chats();
  const options = all.map((one) => {
    const [first] = Object.values(one.nodes);
    return new Option(
      first.text.trim().replace(/\s+/g, " ").slice(0, 60),
      one.id,
      false,
      one.id === chat.id,
    );
  });
  if (!all.some(({ id }) => id === chat.id)) {
    options.unshift(new Option("New conversation", chat.id, true, true));
  }
  $("chats").replaceChildren(...options);
  $("delete").disabled = chat.leaf === null;
}

function showRoom() {
  const last = pathTo(chat.leaf).findLast(({ stats }) => stats)?.stats;
  const used = last ? last.prompt + last.tokens : 0;
  $("room").textContent = contextSize
    ? `${count(used)} of ${count(contextSize)} tokens`
    : "";
}

const count = (value) => value.toLocaleString("en-US");
const NAMES = { user: "You", assistant: "Reply", tool: "Result of a function" };

function messageElement(node) {
  const heading = el("h2", { className: "who" }, NAMES[node.role]);
  const item = el(
    "li",
    { className: `message ${node.role}`, id: node.id },
    heading,
  );
  if (editing === node.id) {
    item.append(editor(node));
    return item;
  }
  const body = el("div", { className: "body" });
  item.append(body);
  fill(item, node);
  item.append(actions(node));
  return item;
}

/** Puts the text of a message into its element. */
function fill(item, node) {
  const body = item.querySelector(".body"), busy = running?.node === node;
  if (node.role === "user") body.textContent = node.text;
  else if (node.role === "tool") {
    body.replaceChildren(el("pre", { tabIndex: 0 }, node.text));
  } else {
    const part = (name, make) =>
      body.querySelector(`:scope > .${name}`) ?? body.appendChild(make());
    if (node.reasoning.trim()) {
      const details = part("thinking", () => thinkingElement(node));
      details.firstChild.textContent = busy && !node.text && !node.calls.length
        ? "Thinking …"
        : "Thoughts";
      details.lastChild.textContent = node.reasoning.trim();
    }
    renderMarkdown(
      part("text", () => el("div", { className: "text" })),
      node.text,
    );
    part("calls", () => el("div", { className: "calls" })).replaceChildren(
      ...node.calls.map(callElement),
    );
  }
  body.classList.toggle("busy", busy);
  if (busy) return;
  if (node.problem) item.append(problemElement(node));
  if (node.note) item.append(el("p", { className: "note" }, node.note));
  if (node.stats) {
    item.append(el("p", { className: "stats" }, statsText(node.stats)));
  }
}

function thinkingElement({ id }) {
  const details = el(
    "details",
    { className: "thinking", open: unfolded.has(id) },
    el("summary"),
    el("div"),
  );
  details.addEventListener(
    "toggle",
    () => unfolded[details.open ? "add" : "delete"](id),
  );
  return details;
}

function callElement({ function: { name, arguments: text } }) {
  return el(
    "div",
    { className: "code" },
    el("div", {}, el("span", {}, "Calls ", el("strong", {}, name))),
    el("pre", {
      tabIndex: 0,
      role: "region",
      ariaLabel: `Arguments of ${name}`,
    }, indented(text)),
  );
}

function indented(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

function problemElement({ problem, code }) {
  const box = el("div", { className: "problem", role: "alert" });
  box.append(el("p", {}, problem));
  if (code === "context_length_exceeded") {
    box.append(el(
      "p",
      {},
      "Begin a new conversation, edit an earlier message, or allow fewer tokens in the settings.",
    ));
  }
  return box;
}

function statsText({ tokens, prompt, cached, rate, first }) {
  const speed = rate
    ? `${rate < 10 ? rate.toFixed(1) : count(Math.round(rate))} tokens/s · `
    : "";
  return `${speed}${count(tokens)} tokens · prompt ${count(prompt)}, ${
    count(cached)
  } cached · first after ${time(first)}`;
}

function time(seconds) {
  return seconds < 0.1
    ? `${Math.round(1000 * seconds)} ms`
    : `${seconds.toFixed(1)} s`;
}

function actions(node) {
  const { id, role, parent, text } = node, all = siblings(node);
  const bar = el("div", { className: "actions" });
  if (running?.node === node) return bar;
  if (all.length > 1) bar.append(...versions(node, all));
  if (text) bar.append(button("Copy", () => copyText(text)));
  if (role === "user") bar.append(button("Edit", () => edit(id)));
  if (role === "assistant") {
    bar.append(button("Try again", () => running || reply(parent)));
  }
  return bar;
}

function versions(node, all) {
  const at = all.indexOf(node);
  const turn = (by, label, sign) =>
    button(sign, () => {
      stop();
      const next = all[at + by];
      show(next);
      render(
        `#${next.id} [aria-label="${label}"]:enabled, #${next.id} .actions button:enabled`,
      );
      announce(`Version ${at + by + 1} of ${all.length}`);
    }, { ariaLabel: label, disabled: !all[at + by] });
  return [
    turn(-1, "Previous version", "‹"),
    el("span", {}, `${at + 1}/${all.length}`),
    turn(1, "Next version", "›"),
  ];
}

function edit(id) {
  if (running) return;
  editing = id;
  render(`#${id} textarea`);
}

function editor({ id, parent, text }) {
  const area = el("textarea", {
    value: text,
    ariaLabel: "Edit your message",
    rows: 1,
  });
  const done = (focus) => {
    editing = undefined;
    render(focus);
  };
  const cancel = () => done(`#${id} .actions button:last-child`);
  const finish = () => {
    if (running || area.value.trim() === "") return;
    editing = undefined;
    draft.focus();
    reply(add(parent, { role: "user", text: area.value }).id);
  };
  area.addEventListener("input", () => fit(area));
  area.addEventListener("keydown", (event) => {
    if (isEnter(event)) finish();
    else if (event.key === "Escape") cancel();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  requestAnimationFrame(() => fit(area));
  return el(
    "div",
    { className: "editing" },
    area,
    el(
      "div",
      { className: "actions" },
      button("Send", finish),
      button("Cancel", cancel),
    ),
  );
}

/** Calls of the last reply that wait for results. */
function askedCalls(path) {
  if (running) return [];
  const at = path.findLastIndex(({ role }) => role === "assistant");
  if (at < 0) return [];
  const given = path.slice(at + 1).map(({ call }) => call);
  return path[at].calls.filter(({ id }) => !given.includes(id));
}

function resultForm(calls) {
  const form = el("form", { className: "result" });
  for (const { id, function: { name } } of calls) {
    form.append(
      el(
        "label",
        {},
        `Result of ${name}`,
        el("textarea", { name: id, rows: 2 }),
      ),
    );
  }
  form.append(el("button", { className: "main" }, "Send results"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    for (const { id } of calls) {
      add(chat.leaf, { role: "tool", call: id, text: form.elements[id].value });
    }
    draft.focus();
    reply(chat.leaf);
  });
  return el("li", {}, form);
}

let scheduled = false;

/** Draws a reply in the next frame. */
function schedule(node) {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const item = $(node.id);
    if (running?.node !== node || !item) return;
    const follows = isAtEnd();
    fill(item, node);
    if (follows) toEnd();
  });
}

/** Whether the end is in sight, and is to stay there. */
function isAtEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight <
    60;
}

function toEnd() {
  scroller.scrollTop = scroller.scrollHeight;
}

/** As high as its text. */
function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

/** Says something to screen readers. */
function announce(text) {
  $("announce").textContent = text;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
  } catch { // not offered without https, except on this machine
    state(
      "Cannot copy: the browser allows it only over https or on localhost.",
    );
  }
}

// --- What the user does -------------------------------------------------------------------

const isEnter = ({ key, shiftKey, isComposing }) =>
  key === "Enter" && !shiftKey && !isComposing;

/** Shows a conversation; a reply to another one stops, and what there is of it stays there. */
function open(other) {
  stop();
  running = editing = undefined;
  chat = other;
  save();
  render();
  toEnd();
  draft.focus();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
draft.addEventListener("input", () => fit(draft));
draft.addEventListener("keydown", (event) => {
  if (isEnter(event)) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && draft.value === "") {
    const last = pathTo(chat.leaf).findLast(({ role }) => role === "user");
    if (!last) return;
    event.preventDefault();
    edit(last.id);
  }
});
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && !document.querySelector("dialog[open]")) stop();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => {
  save();
  open(newChat());
});
$("chats").addEventListener("change", ({ target }) => {
  save();
  open(load(CHAT + target.value) ?? newChat());
});
$("delete").addEventListener("click", () => {
  if (!confirm("Delete this conversation?")) return;
  stop();
  localStorage.removeItem(CHAT + chat.id);
  open(chats()[0] ?? newChat());
});
addEventListener("pagehide", () => {
  stop(); // otherwise the reply would fail
  save();
});

function toolsProblem(text) {
  if (text.trim() === "") return "";
  try {
    return Array.isArray(JSON.parse(text)) ? "" : "This must be a JSON list.";
  } catch (error) {
    return `This is not JSON: ${error.message}`;
  }
}

/** Keeps what is valid; the rest is marked. */
function readSettings() {
  const { tools } = settingsForm.elements;
  tools.setCustomValidity(toolsProblem(tools.value));
  const fields = [...settingsForm.elements].filter((
    { name, value, validity },
  ) => name && value.trim() && validity.valid);
  settings = Object.fromEntries(fields.map(({ name, value }) => [name, value]));
  store(SETTINGS, settings);
}

$("open-settings").addEventListener("click", () => {
  for (const field of settingsForm.elements) {
    if (field.name) field.value = settings[field.name] ?? "";
  }
  $("settings").showModal();
});
settingsForm.addEventListener("input", readSettings);
$("defaults").addEventListener("click", () => {
  settingsForm.reset();
  readSettings();
});

const system = matchMedia("(prefers-color-scheme: dark)");

/** The system's theme holds until the switch chooses the other one. */
function showTheme() {
  const chosen = load(THEME);
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
  $("dark").ariaChecked = String(chosen ? chosen === "dark" : system.matches);
}

$("dark").addEventListener("click", () => {
  const next = $("dark").ariaChecked === "true" ? "light" : "dark";
  if ((next === "dark") === system.matches) localStorage.removeItem(THEME);
  else store(THEME, next);
  showTheme();
});
system.addEventListener("change", showTheme);

showTheme();
render();
toEnd();
draft.focus();
watch();
