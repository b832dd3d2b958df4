/**
 * Draws a profile report into `main`. html.ts embeds this script after ECharts;
 * it runs in a browser.
 */
"use strict";

const report = JSON.parse(document.getElementById("report").textContent);
const page = document.getElementById("page");
/** One function per chart that redraws it. */
const charts = [];
/** Groups of operations; each has a color of that name in page.css. */
const GROUPS = [
  "linear",
  "attention",
  "norm",
  "embedding",
  "sampling",
  "other",
];

/** An element with attributes and children. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A color from page.css, for the charts. */
function color(name) {
  const style = getComputedStyle(document.documentElement);
  return style.getPropertyValue(`--${name}`).trim();
}

const font = () => getComputedStyle(document.body).fontFamily;
const narrow = () => innerWidth <= 760;
const escape = (text) =>
  String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/** Three significant digits. */
function digits(value) {
  if (value === 0) return "0";
  if (value >= 100) return Math.round(value).toLocaleString("en-US");
  return value >= 10 ? value.toFixed(1) : value.toPrecision(2);
}

const PREFIXES = ["", "k", "M", "G", "T"];

function prefixed(value) {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(value) / 3)));
  return `${digits(value / 1000 ** power)} ${PREFIXES[power]}`;
}

/** The label of a tick on a logarithmic axis; only powers of ten have one. */
function decade(value) {
  const exponent = Math.log10(value);
  if (Math.abs(exponent - Math.round(exponent)) >= 1e-6) return "";
  if (value < 1) return String(+value.toPrecision(1));
  const power = Math.min(4, Math.floor(exponent / 3 + 1e-9));
  return `${+(value / 1000 ** power).toPrecision(3)} ${PREFIXES[power]}`;
}

function count(value) {
  return Number.isInteger(+value.toFixed(6))
    ? Math.round(value).toLocaleString("en-US")
    : digits(value);
}

function time(ms) {
  if (ms < 1) return `${digits(ms * 1000)} µs`;
  return ms < 10000 ? `${digits(ms)} ms` : `${digits(ms / 1000)} s`;
}

function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  const precise = (value > 0 && value < 2) || (value > 99 && value < 100);
  return `${value.toFixed(precise ? 1 : 0)} %`;
}

/** `format(value)`, or a dash where there is no value. */
const orDash = (value, format) => value ? format(value) : "–";
const known = (value, format) => value === undefined ? "–" : format(value);

function section(id, title, text) {
  const node = el(
    "section",
    { id },
    el("h2", {}, title),
    el("p", { class: "soft small" }, text),
  );
  page.append(node);
  return node;
}

/** A table that scrolls sideways if it does not fit. */
function table(attributes, titles, rows) {
  const head = el("thead", {}, el("tr", {}, ...titles));
  const body = el("tbody", {}, ...rows);
  return el("div", { class: "scroll" }, el("table", attributes, head, body));
}

const cells = (tag, texts) => texts.map((text) => el(tag, {}, text));

/** A chart that is redrawn when the window or the colors change. */
function chart(parent, label, height, option) {
  const box = el("div", { class: "chart", role: "img", "aria-label": label });
  parent.append(box);
  box.style.height = `${height()}px`;
  const instance = echarts.init(box, null, { renderer: "svg" });
  const draw = () => {
    box.style.height = `${height()}px`;
    instance.resize();
    instance.setOption(option(), true);
  };
  charts.push(draw);
  draw();
  return { instance, draw };
}

/** Options common to all charts. */
function base(tooltip) {
  return {
    animation: false,
    textStyle: { fontFamily: font(), color: color("text") },
    tooltip: {
      confine: true,
      backgroundColor: color("card"),
      borderColor: color("line"),
      textStyle: { color: color("text"), fontSize: 13 },
      extraCssText:
        "max-width:340px;white-space:normal;box-shadow:0 4px 18px rgba(0,0,0,.18)",
      ...tooltip,
    },
  };
}

function axis(more) {
  return {
    axisLine: { lineStyle: { color: color("line") } },
    axisTick: { show: false },
    axisLabel: { color: color("soft"), hideOverlap: true },
    splitLine: { lineStyle: { color: color("line") } },
    nameTextStyle: { color: color("soft") },
    ...more,
  };
}

/** The kernels of an operation, and what is fused into them. */
const kernelOf = ({ kernel, fused }) =>
  fused.length ? `${kernel} with ${fused.join(", ")}` : kernel;

/** The tooltip of an operation. */
function tip(phase, operation) {
  const { name, shape, dtypes, ms, calls, share = 0 } = operation;
  const { fraction, bound, tflops, gbps } = operation;
  const lines = [`<b>${escape(name)}</b> · ${phase.name}`];
  if (ms !== undefined) {
    const unit = calls === 1 ? "call" : "calls";
    lines.push(
      `<b>${time(ms)}</b> in ${count(calls)} ${unit}, ${percent(share)}`,
    );
  }
  if (fraction !== undefined) {
    lines.push(`${percent(fraction)} of its limit, ${bound}`);
  }
  if (tflops) {
    lines.push(`${prefixed(tflops * 1e12)}FLOP/s, ${prefixed(gbps * 1e9)}B/s`);
  }
  lines.push(escape(shape), escape(dtypes));
  const kernel = escape(kernelOf(operation));
  lines.push(`<span style='color:${color("soft")}'>${kernel}</span>`);
  return lines.filter(Boolean).join("<br>");
}

/** Fills a legend with [color, name, symbol] entries. */
function legend(parent, items) {
  parent.replaceChildren(...items.map(([tone, name, symbol = ""]) => {
    const dot = el("i", { class: symbol });
    dot.style.background = `var(--${tone})`;
    return el("span", {}, dot, name);
  }));
}

const groupItems = (present) => GROUPS.filter(present).map((g) => [g, g]);

function head() {
  const { device, promptTokens, maxTokens, batch, model } = report;
  const setting = [
    device.adapter,
    `prompt of ${promptTokens}, ${maxTokens} tokens` +
    (batch > 1 ? `, ${batch} sequences` : ""),
  ].join(" · ");
  page.append(el(
    "header",
    {},
    el("h1", {}, model.replace(/^file:.*\/([^/]+)\/?$/, "$1")),
    el("p", { class: "soft" }, setting),
  ));
  const marks = { red: "✗", yellow: "!", green: "✓" };
  const verdicts = report.verdicts.map(({ severity, text }) =>
    el(
      "li",
      { class: `verdict ${severity}` },
      el("b", { "aria-label": severity }, marks[severity]),
      el("span", {}, text),
    )
  );
  page.append(el("ul", { class: "verdicts", id: "verdict" }, ...verdicts));
  page.append(tiles());
}

/** The most important numbers. */
function tiles() {
  const { rates, coverage: { flops }, loop, peaks } = report;
  const box = el("div", { class: "tiles" });
  const tile = (value, label, more = "") =>
    box.append(el(
      "div",
      { class: "tile" },
      el("span", { class: "soft small" }, label),
      el("strong", {}, value),
      el("span", { class: "soft small" }, more),
    ));
  for (const { phase, tokensPerSecond, kind } of rates.toReversed()) {
    tile(digits(tokensPerSecond), `${phase}, tokens/s`, kind);
  }
  tile(
    percent(flops.total ? flops.gpu / flops.total : 0),
    "matmuls on the GPU",
  );
  if (loop && loop.idle !== undefined) tile(percent(loop.idle), "GPU idle");
  if (peaks) tile(`${prefixed(peaks.readGBps * 1e9)}B/s`, "memory, measured");
  return box;
}

function breakdown() {
  const { phases } = report;
  const timed = phases.some(({ operations }) =>
    operations.some(({ ms }) => ms !== undefined)
  );
  const s = section(
    "breakdown",
    "Where the time goes",
    timed
      ? "Time of one step by operation; hover or tap a bar for shape, kernel and rates."
      : "This adapter has no timestamps: only whole passes could be timed.",
  );
  if (!timed) return;
  const shown = phases.flatMap(({ operations }) =>
    operations.filter(({ share }) => share !== undefined)
  );
  const key = el("p", { class: "legend" });
  legend(key, groupItems((group) => shown.some((o) => o.group === group)));
  const pair = el("div", { class: "pair" });
  s.append(key, pair);
  for (const phase of phases) bars(pair, phase);
}

/** The operations of a phase as bars, the slowest at the top. */
function bars(parent, phase) {
  const { name, ms, operations } = phase;
  const rows = operations.filter(({ share }) => share !== undefined)
    .sort((a, b) => a.ms - b.ms).slice(-14);
  const prompts = report.batch > 1 ? "all prompts" : "a prompt";
  const title = `${name}: ${time(ms)} ${
    name === "decode" ? "a step" : prompts
  }`;
  const box = el("div", {}, el("h3", {}, title));
  parent.append(box);
  const height = () => 40 + rows.length * 27;
  const { instance } = chart(box, `Time by operation, ${name}`, height, () => ({
    ...base({
      trigger: "axis",
      axisPointer: {
        type: "shadow",
        shadowStyle: { color: color("roof"), opacity: 0.12 },
      },
      formatter: ([{ dataIndex }]) => tip(phase, rows[dataIndex]),
    }),
    grid: { left: 148, right: 62, top: 6, bottom: 4 },
    xAxis: axis({
      type: "value",
      axisLabel: { show: false },
      splitLine: { show: false },
    }),
    yAxis: axis({
      type: "category",
      data: rows.map(({ name }) => name),
      axisLabel: {
        color: color("text"),
        fontSize: 12,
        width: 136,
        overflow: "truncate",
      },
    }),
    series: [{
      type: "bar",
      barWidth: 15,
      cursor: "default",
      data: rows.map(({ ms, group }) => ({
        value: ms,
        itemStyle: { color: color(group), borderRadius: [0, 4, 4, 0] },
      })),
      label: {
        show: true,
        position: "right",
        color: color("soft"),
        fontSize: 12,
        formatter: ({ dataIndex }) => percent(rows[dataIndex].share),
      },
    }],
  }));
  box.addEventListener(
    "mouseleave",
    () => instance.dispatchAction({ type: "hideTip" }),
  );
}

function roofline() {
  const { peaks, phases } = report;
  if (!peaks) return;
  const marks = phases.flatMap((phase) =>
    phase.operations
      .filter(({ ms, flops, bytes }) => ms && flops && bytes)
      .map((o) => ({ phase, o, value: [o.flops / o.bytes, o.tflops * 1e12] }))
  );
  if (!marks.length) return;
  const s = section(
    "roofline",
    "Roofline",
    "How close each operation comes to the limits of this adapter, measured in the same run. Lines are the limits; larger marks took more time.",
  );
  const key = el("p", { class: "legend" });
  legend(key, [
    ["roof", "decode", "circle"],
    ["roof", "prefill", "diamond"],
    ...groupItems((group) => marks.some(({ o }) => o.group === group)),
  ]);
  s.append(key);
  const scale = scaleOf(marks, peaks);
  const height = () => narrow() ? 380 : 460;
  const log = (min, max, name) =>
    axis({
      type: "log",
      min,
      max,
      name,
      axisLabel: { color: color("soft"), formatter: decade },
    });
  chart(s, "Roofline", height, () => ({
    ...base({
      trigger: "item",
      formatter: ({ data: { phase, o }, value }) =>
        o ? `${tip(phase, o)}<br>${digits(value[0])} FLOP a byte` : "",
    }),
    grid: scale.grid,
    xAxis: {
      ...log(scale.left, scale.right, "FLOPs a byte"),
      nameLocation: "middle",
      nameGap: 26,
    },
    yAxis: log(scale.bottom, scale.top, "FLOP/s"),
    series: [...roofSeries(scale), markSeries(marks)],
    graphic: {
      elements: names(marks, scale, (value) => {
        const padding = parseFloat(getComputedStyle(s).paddingLeft);
        return pixelOf(scale, value, s.clientWidth - 2 * padding, height());
      }),
    },
  }));
}

/** The layout of a roofline: ranges of its axes, roofs and margins. */
function scaleOf(marks, { readGBps, f32TFLOPS, f16TFLOPS = 0 }) {
  const xs = marks.map(({ value }) => value[0]);
  const ys = marks.map(({ value }) => value[1]);
  const bandwidth = readGBps * 1e9;
  const rates = [["f32", f32TFLOPS * 1e12], ["f16", f16TFLOPS * 1e12]]
    .filter(([, rate]) => rate > 0);
  const highest = Math.max(...rates.map(([, rate]) => rate));
  const left = Math.min(...xs) / 2;
  return {
    bandwidth,
    // The highest roof has its name above the line, the others below.
    roofs: rates.map(([name, rate]) => ({
      name,
      rate,
      below: rate === highest ? -10 : 12,
    })),
    left,
    right: Math.max(...xs, highest / bandwidth) * 5,
    bottom: Math.min(...ys, left * bandwidth) / 2,
    top: Math.max(...ys, highest) * 3,
    grid: { left: 52, right: 18, top: 34, bottom: 44 },
  };
}

/** The pixels of a value on a roofline, and the right end of its chart. */
function pixelOf({ left, right, bottom, top, grid }, [x, y], width, height) {
  const at = (value, from, to) => Math.log(value / from) / Math.log(to / from);
  return [
    grid.left + at(x, left, right) * (width - grid.left - grid.right),
    grid.top + (1 - at(y, bottom, top)) * (height - grid.top - grid.bottom),
    width - grid.right,
  ];
}

function roofSeries({ roofs, left, right, bandwidth }) {
  return roofs.map(({ name, rate, below }, i) => ({
    type: "line",
    silent: true,
    symbol: "none",
    z: 1,
    name,
    data: [
      [left, left * bandwidth],
      [rate / bandwidth, rate],
      [right, rate],
    ],
    lineStyle: {
      color: color("roof"),
      width: 1.6,
      type: i ? "dashed" : "solid",
    },
    endLabel: {
      show: true,
      formatter: () => `${name} ${prefixed(rate)}FLOP/s`,
      color: color("soft"),
      fontSize: 12,
      align: "right",
      offset: [-8, below],
    },
  }));
}

function markSeries(marks) {
  return {
    type: "scatter",
    z: 3,
    cursor: "default",
    data: marks.map(({ phase, o, value }) => ({
      value,
      phase,
      o,
      symbol: phase.name === "decode" ? "circle" : "diamond",
      symbolSize: 2 * radius(o),
      itemStyle: {
        color: color(o.group),
        opacity: 0.8,
        borderColor: color("card"),
        borderWidth: 1,
      },
    })),
  };
}

const radius = ({ share = 0 }) => 4 + 9 * Math.sqrt(share);
/** Pixels of a line of text, and of one of its letters on average. */
const LINE = 15, LETTER = 7.6;

/**
 * Labels next to the largest marks of a roofline, placed so that they cover nothing.
 * `place` gives the pixels of a value and the right end of the chart.
 */
function names(marks, { roofs, grid }, place) {
  const elements = [];
  // Boxes that a label must not cover: [left, top, right, bottom].
  const taken = [
    ...marks.map(({ o, value }) => {
      const [x, y] = place(value), r = radius(o);
      return [x - r, y - r, x + r, y + r];
    }),
    ...roofs.map(({ rate, below }) => {
      const [, y, right] = place([1, rate]);
      return [right - 130, y + below - 9, right, y + below + 9];
    }),
  ];
  const covers = ([left, top, right, bottom]) =>
    taken.some(([l, t, r, b]) =>
      left < r && right > l && top < b && bottom > t
    );
  for (const name of ["decode", "prefill"]) {
    // Decode's labels go down from the topmost mark, prefill's up from the lowest.
    const down = name === "decode" ? 1 : -1;
    const points = pointsOf(
      marks.filter(({ phase }) => phase.name === name),
      place,
    )
      .sort((a, b) => down * (a.y - b.y));
    for (const point of points) {
      const near = points.filter(({ x, y }) =>
        Math.abs(x - point.x) < 110 && Math.abs(y - point.y) < 60
      );
      const wide = LETTER * point.name.length;
      const from = Math.min(...near.map(({ x, r }) => x - r)) - 14;
      const to = Math.max(...near.map(({ x, r }) => x + r)) + 14;
      // The axis has its own texts left of the grid.
      const fitsLeft = from - wide >= grid.left;
      const fitsRight = to + wide < point.right;
      const onRight = !fitsLeft || name === "prefill" && fitsRight;
      const inside = Math.max(grid.left, Math.min(to, point.right - wide));
      const x = onRight ? inside : from;
      const box = (y) => [
        onRight ? x : x - wide,
        y - LINE / 2,
        onRight ? x + wide : x,
        y + LINE / 2,
      ];
      let { y } = point;
      for (let tries = 0; tries < 60 && covers(box(y)); tries++) y += 3 * down;
      taken.push(box(y));
      elements.push(...nameAt(point, x, y, onRight));
    }
  }
  return elements;
}

/** Positions of the marks large enough for a label; marks at one position share one. */
function pointsOf(marks, place) {
  const least = narrow() ? 0.1 : 0.04;
  const points = new Map();
  for (const { o, value } of marks.filter(({ o }) => o.share > least)) {
    const [x, y, right] = place(value);
    const key = `${x.toFixed()} ${y.toFixed()}`, same = points.get(key);
    if (!same) points.set(key, { x, y, right, r: radius(o), name: o.name });
    // Scores and values of attention coincide if one kernel runs both.
    else if (o.group === "attention") same.name = "attention";
    else same.name = `${same.name}, ${o.name}`;
  }
  return [...points.values()];
}

/** A label at [x, y], and the line to it from its mark. */
function nameAt(point, x, y, onRight) {
  const side = onRight ? -1 : 1;
  const line = [[point.x, point.y], [x + 8 * side, y], [x + 2 * side, y]];
  return [{
    type: "polyline",
    silent: true,
    z: 2,
    shape: { points: line },
    style: { stroke: color("soft"), fill: "none", lineWidth: 0.8 },
  }, {
    type: "text",
    silent: true,
    z: 4,
    style: {
      text: point.name,
      x,
      y,
      textAlign: onRight ? "left" : "right",
      textVerticalAlign: "middle",
      fill: color("text"),
      stroke: color("card"),
      lineWidth: 3,
      font: `12px ${font()}`,
    },
  }];
}

/** A profiled step is a burst of events; the longest one is shown. */
const PAUSE_MS = 40;

function longestBurst(events) {
  const bursts = [];
  let end = -Infinity;
  for (const event of events) {
    if (event.begin - end > PAUSE_MS) bursts.push([]);
    bursts.at(-1).push(event);
    end = Math.max(end, event.begin + event.ms);
  }
  return bursts.sort((a, b) => b.length - a.length)[0] ?? [];
}

const LOOP = "decode loop";
/** Colors of the CPU's work in the decode loop. */
const CPU_TONES = {
  encode: "attention",
  submit: "sampling",
  wait: "embedding",
  readback: "norm",
};

function timeline() {
  const parts = [LOOP, "profiled decode", "profiled prefill"].filter((part) =>
    report.timeline.some((event) => event.part === part)
  );
  if (!parts.length) return;
  const s = section(
    "timeline",
    "Timeline",
    "What the GPU and the CPU did, by one clock. Scroll or pinch to zoom, drag to move.",
  );
  const tabs = el("div", { class: "tabs" });
  const key = el("p", { class: "legend" });
  s.append(tabs, key);
  let part = parts[0];
  const { draw } = chart(s, "Timeline", () => 230, () => {
    const events = eventsOf(part);
    legend(key, timelineItems(part, events));
    return timelineOption(part, events);
  });
  const buttons = parts.map((name) => {
    const pressed = { type: "button", "aria-pressed": String(name === part) };
    const button = el("button", pressed, name);
    button.addEventListener("click", () => {
      part = name;
      for (const other of buttons) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      draw();
    });
    return button;
  });
  tabs.append(...buttons);
  if (report.loop) s.append(el("p", { class: "small soft" }, loopText()));
}

function eventsOf(part) {
  const events = report.timeline.filter((event) => event.part === part)
    .sort((a, b) => a.begin - b.begin);
  return part === LOOP ? events : longestBurst(events);
}

const lanesOf = (events) =>
  ["CPU", "GPU"].filter((lane) => events.some((event) => event.lane === lane));

/** The color of an event. */
function toneOf(part, { lane, name }) {
  if (lane === "CPU" && CPU_TONES[name]) return CPU_TONES[name];
  return part === LOOP ? "linear" : groupOf(name);
}

/** The group of the operation that a dispatch of this label belongs to. */
function groupOf(label) {
  const role = label.replace(/^layers\.\d+\./, "");
  for (const { operations } of report.phases) {
    for (const { name, group } of operations) {
      if (
        name === role || (role === "attention" && group === "attention") ||
        (role.startsWith("sampling") && group === "sampling")
      ) return group;
    }
  }
  if (/norm|rope|f16/.test(label)) return "norm";
  return /embed|row/.test(label) ? "embedding" : "linear";
}

function timelineItems(part, events) {
  const tones = new Set(events.map((event) => toneOf(part, event)));
  if (part !== LOOP) return groupItems((group) => tones.has(group));
  return [
    ...lanesOf(events).includes("GPU")
      ? [["linear", "GPU: steps up to a readback"]]
      : [],
    ...Object.entries(CPU_TONES).map(([what, tone]) => [tone, `CPU: ${what}`]),
  ];
}

function timelineOption(part, events) {
  const lanes = lanesOf(events);
  const origin = Math.min(...events.map(({ begin }) => begin));
  return {
    ...base({
      trigger: "item",
      formatter: ({ data: { event }, value }) =>
        [
          `<b>${escape(event.name)}</b>`,
          event.detail ? escape(event.detail) : "",
          `${event.lane}, ${time(event.ms)}`,
          `from ${time(Math.max(0, value[1]))}`,
        ].filter(Boolean).join("<br>"),
    }),
    grid: { left: 4, right: 36, top: 12, bottom: 58, containLabel: true },
    xAxis: axis({
      type: "value",
      min: 0,
      max: "dataMax",
      axisLabel: {
        color: color("soft"),
        hideOverlap: true,
        formatter: (value) => `${+value.toPrecision(4)} ms`,
      },
    }),
    yAxis: axis({
      type: "category",
      data: lanes,
      axisLabel: { color: color("text"), fontWeight: 600 },
    }),
    dataZoom: zoom(),
    series: [{
      type: "custom",
      clip: true,
      encode: { x: [1, 2], y: 0 },
      renderItem: eventBox,
      data: events.map((event) => ({
        event,
        value: [
          lanes.indexOf(event.lane),
          event.begin - origin,
          event.begin - origin + event.ms,
        ],
        itemStyle: { color: color(toneOf(part, event)) },
      })),
    }],
  };
}

function zoom() {
  return [
    { type: "inside", filterMode: "weakFilter" },
    {
      type: "slider",
      filterMode: "weakFilter",
      height: 20,
      bottom: 8,
      showDetail: false,
      borderColor: color("line"),
      fillerColor: `${color("linear")}26`,
      handleStyle: { color: color("card"), borderColor: color("soft") },
      moveHandleStyle: { color: color("line") },
      dataBackground: { lineStyle: { opacity: 0 }, areaStyle: { opacity: 0 } },
    },
  ];
}

/** An event of the timeline as a rectangle, at least a pixel wide. */
function eventBox({ coordSys }, api) {
  const from = api.coord([api.value(1), api.value(0)]);
  const to = api.coord([api.value(2), api.value(0)]);
  const height = Math.min(46, api.size([0, 1])[1] * 0.6);
  const box = {
    x: from[0],
    y: from[1] - height / 2,
    width: Math.max(1, to[0] - from[0] - 0.5),
    height,
  };
  const { x, y, width, height: tall } = coordSys;
  const seen = { x, y, width, height: tall };
  const shape = echarts.graphic.clipRectByRect(box, seen);
  return shape && {
    type: "rect",
    shape: { r: 2, ...shape },
    style: { fill: api.visual("color") },
  };
}

function loopText() {
  const { loop, batch } = report;
  const each = batch > 1 ? `step of ${batch} tokens` : "token";
  const onCpu = `A ${each} on the CPU: encode ${time(loop.encodeMs)}, submit ${
    time(loop.submitMs)
  }, wait ${time(loop.waitMs)}, readback ${time(loop.readbackMs)}.`;
  const whole = `In all ${time(loop.stepMs)}`;
  if (loop.gpuMs === undefined) return `${onCpu} ${whole}.`;
  return `${onCpu} ${whole}, of which the GPU works ${time(loop.gpuMs)}.`;
}

function coverage() {
  const { calls, flops, refusals } = report.coverage;
  const s = section(
    "coverage",
    "Coverage",
    "How much of the matmul work ran on the GPU.",
  );
  const bar = (name, { gpu, total }, text) => {
    const share = percent(total ? gpu / total : 0);
    s.append(el("p", { class: "small" }, `${share} of ${text}`));
    const fill = el("i");
    fill.style.width = `${100 * (total ? gpu / total : 0)}%`;
    const label = `${share} of ${name} on the GPU`;
    const about = { class: "bar", role: "img", "aria-label": label };
    s.append(el("div", about, fill));
  };
  bar("calls", calls, `${count(calls.total)} calls`);
  bar("FLOPs", flops, `${prefixed(flops.total)}FLOPs`);
  if (!refusals.length) return;
  const titles = [
    ...cells("th", ["operation", "count"]),
    el("th", { class: "left" }, "refusal"),
  ];
  const rows = refusals.map(({ operations, count: times, line }) =>
    el(
      "tr",
      {},
      ...cells("td", [operations.join(", "), count(times)]),
      el("td", { class: "why" }, el("code", {}, line)),
    )
  );
  s.append(table({ id: "refusals" }, titles, rows));
}

function comparison() {
  if (!report.compare) return;
  const s = section(
    "compare",
    "GPU over CPU",
    "The CPU path running the same steps, and the speedup a GPU should give.",
  );
  const titles = cells("th", ["", "GPU", "CPU", "factor", "target"]);
  const rows = report.compare.map(
    ({ phase, what, gpuMs, cpuMs, factor, target }) =>
      el(
        "tr",
        {},
        ...cells("td", [
          `${phase}, ${what}`,
          known(gpuMs, time),
          time(cpuMs),
          known(factor, (factor) => `${digits(factor)}×`),
          `${target.join("–")}×`,
        ]),
      ),
  );
  s.append(table({}, titles, rows));
}

function tables() {
  const s = section(
    "table",
    "Every operation",
    "Per step. The limit is memory or arithmetic, whichever takes longer at this adapter's measured peak rates.",
  );
  for (const phase of report.phases) {
    const { name, ms, profiledMs, factor, operations } = phase;
    const title = factor && factor !== 1
      ? `${name}: ${time(ms)} as it runs, ${
        time(profiledMs)
      } while each dispatch was timed`
      : `${name}: ${time(ms)}`;
    s.append(
      el("h3", {}, title),
      operationTable(operations),
      whys(operations),
    );
  }
}

function operationTable(operations) {
  const titles = [
    el("th", {}, "operation, kernel"),
    ...cells("th", [
      "time",
      "share",
      "of its limit",
      "calls",
      "FLOPs",
      "bytes",
      "FLOP/s",
      "bytes/s",
    ]),
    el("th", { class: "left" }, "shape, types"),
  ];
  const rows = operations.map((o) => {
    const dot = el("i");
    dot.style.background = `var(--${o.group})`;
    const kernel = o.kernel === "none" ? "" : o.kernel;
    return el(
      "tr",
      {},
      el("td", {}, dot, o.name, el("small", {}, kernel)),
      ...cells("td", [
        known(o.ms, time),
        known(o.share, percent),
        known(o.fraction, (fraction) => `${percent(fraction)} ${o.bound}`),
        count(o.calls),
        orDash(o.flops, prefixed),
        orDash(o.bytes, prefixed),
        orDash(o.flops && o.tflops, (tflops) => prefixed(tflops * 1e12)),
        orDash(o.bytes && o.gbps, (gbps) => prefixed(gbps * 1e9)),
      ]),
      el("td", { class: "left" }, o.shape, el("small", {}, o.dtypes)),
    );
  });
  return table({}, titles, rows);
}

/** Why each kernel was chosen; operations with the same reason share a line. */
function whys(operations) {
  const lines = new Map();
  for (const operation of operations) {
    const { name, kernel, reason } = operation;
    const why = kernel === "none"
      ? reason
      : `${kernelOf(operation)}: ${reason}`;
    const constants = Object.entries(operation.constants)
      .filter(([constant]) => !/_(DTYPE|VIEW|UNIT)$/.test(constant))
      .map((pair) => pair.join("=")).join(" ");
    const key = `${why}\n${constants}`;
    const line = lines.get(key) ?? { why, constants, names: new Set() };
    line.names.add(name);
    lines.set(key, line);
  }
  return el(
    "details",
    {},
    el("summary", {}, "Why these kernels, with their constants"),
    ...Array.from(lines.values(), ({ why, constants, names }) =>
      el(
        "p",
        { class: "small choice" },
        el("b", {}, [...names].join(", ")),
        ` ${why} `,
        el("code", { class: "soft" }, constants),
      )),
  );
}

function notes() {
  const s = section("notes", "Notes", "How these numbers were measured.");
  const choices = report.device.choices.map(({ what, value, reason }) =>
    `${what}: ${value} (${reason})`
  );
  const items = cells("li", [...report.notes, ...choices]);
  s.append(el("ul", { class: "notes small" }, ...items));
}

head();
breakdown();
roofline();
timeline();
coverage();
comparison();
tables();
notes();
const redraw = () => charts.forEach((draw) => draw());
let waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(redraw, 100);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
