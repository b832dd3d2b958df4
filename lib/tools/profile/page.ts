/**
 * Script of the page that lib/tools/profile/html.ts writes; it runs in a browser.
 *
 * @module
 */

/** Draws the report into `main`. Plain browser JavaScript, without template strings. */
export const SCRIPT = /* js */ `
"use strict";
const report = JSON.parse(document.getElementById("report").textContent);
const page = document.getElementById("page");
const charts = [];
const GROUPS = ["linear", "attention", "norm", "embedding", "sampling", "other"];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function digits(value) {
  if (value === 0) return "0";
  if (value >= 100) return Math.round(value).toLocaleString("en-US");
  return value >= 10 ? value.toFixed(1) : value.toPrecision(2);
}
function prefixed(value) {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(value) / 3)));
  return digits(value / 1000 ** power) + " " + ["", "k", "M", "G", "T"][power];
}
/** Powers of ten, for axes. */
function round(value) {
  if (value < 1) return String(+value.toPrecision(1));
  const power = Math.min(4, Math.floor(Math.log10(value) / 3 + 1e-9));
  return +(value / 1000 ** power).toPrecision(3) + " " + ["", "k", "M", "G", "T"][power];
}
const count = (value) => Number.isInteger(+value.toFixed(6)) ? Math.round(value).toLocaleString("en-US") : digits(value);
const time = (ms) => ms < 1 ? digits(ms * 1000) + " µs" : ms < 10000 ? digits(ms) + " ms" : digits(ms / 1000) + " s";
function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return value.toFixed((value > 0 && value < 2) || (value > 99 && value < 100) ? 1 : 0) + " %";
}
const escape = (text) => String(text).replace(/[&<>"]/g, (c) => "&#" + c.charCodeAt(0) + ";");
const narrow = () => innerWidth <= 760;

function section(id, title, text) {
  const node = el("section", { id }, el("h2", {}, title), el("p", { class: "soft small" }, text));
  page.append(node);
  return node;
}
/** A chart that is drawn again when the window or the colours change. */
function chart(parent, label, height, option) {
  const box = el("div", { class: "chart", role: "img", "aria-label": label });
  parent.append(box);
  const tall = () => typeof height === "function" ? height() : height;
  box.style.height = tall() + "px";
  const instance = echarts.init(box, null, { renderer: "svg" });
  const draw = () => {
    box.style.height = tall() + "px";
    instance.resize();
    instance.setOption(option(), true);
  };
  charts.push(draw);
  draw();
  return { instance, draw };
}
function base() {
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: color("text") },
    tooltip: {
      confine: true, backgroundColor: color("card"), borderColor: color("line"),
      textStyle: { color: color("text"), fontSize: 13 }, extraCssText: "max-width:340px;white-space:normal;box-shadow:0 4px 18px rgba(0,0,0,.18)",
    },
  };
}
function axis(more) {
  return Object.assign({
    axisLine: { lineStyle: { color: color("line") } }, axisTick: { show: false },
    axisLabel: { color: color("soft"), hideOverlap: true }, splitLine: { lineStyle: { color: color("line") } },
    nameTextStyle: { color: color("soft") },
  }, more);
}
function tip(phase, o) {
  const lines = [
    "<b>" + escape(o.name) + "</b> · " + phase.name,
    escape(o.shape), escape(o.dtypes),
    o.ms === undefined ? "" : "<b>" + time(o.ms) + "</b> in " + count(o.calls) + (o.calls === 1 ? " call, " : " calls, ") + percent(o.share || 0),
    o.fraction === undefined ? "" : percent(o.fraction) + " of its limit, " + o.bound,
    o.tflops ? prefixed(o.tflops * 1e12) + "FLOP/s, " + prefixed(o.gbps * 1e9) + "B/s" : "",
    "<span style='color:" + color("soft") + "'>" + escape(o.kernel) + (o.fused.length ? " with " + escape(o.fused.join(", ")) : "") + "</span>",
  ];
  return lines.filter(Boolean).join("<br>");
}

/** What colours and symbols mean: [colour, name, symbol] each. */
function legend(parent, items) {
  parent.replaceChildren(...items.map(([tone, name, symbol]) => {
    const dot = el("i", { class: symbol || "" });
    dot.style.background = "var(--" + tone + ")";
    return el("span", {}, dot, name);
  }));
}
const groupItems = (present) => GROUPS.filter(present).map((g) => [g, g]);

function head() {
  const sub = report.device.adapter + " · prompt of " + report.promptTokens + ", " + report.maxTokens + " tokens" +
    (report.batch > 1 ? ", " + report.batch + " sequences" : "");
  page.append(el("header", {}, el("h1", {}, report.model.replace(/^file:.*\\/([^/]+)\\/?$/, "$1")), el("p", { class: "soft" }, sub)));
  const marks = { red: "✗", yellow: "!", green: "✓" };
  page.append(el("ul", { class: "verdicts", id: "verdict" }, ...report.verdicts.map((v) =>
    el("li", { class: "verdict " + v.severity }, el("b", { "aria-label": v.severity }, marks[v.severity]), el("span", {}, v.text)))));
  const tiles = el("div", { class: "tiles" });
  const tile = (value, label) => tiles.append(el("div", { class: "tile" }, el("span", { class: "soft small" }, label), el("strong", {}, value)));
  for (const p of report.phases) tile(digits(p.tokensPerSecond), p.name + ", tokens/s");
  const { flops } = report.coverage;
  tile(percent(flops.total ? flops.gpu / flops.total : 0), "matmuls on the GPU");
  if (report.loop) {
    tile(digits(report.loop.tokensPerSecond), "decode loop, tokens/s");
    if (report.loop.idle !== undefined) tile(percent(report.loop.idle), "GPU idle");
  }
  if (report.peaks) tile(prefixed(report.peaks.readGBps * 1e9) + "B/s", "memory, measured");
  page.append(tiles);
}

function breakdown() {
  const timed = report.phases.some((p) => p.operations.some((o) => o.ms !== undefined));
  const s = section("breakdown", "Where the time goes", timed
    ? "Time of one step by operation; hover or tap a bar for shape, kernel and rates."
    : "This adapter has no timestamps: only whole passes could be timed.");
  if (!timed) return;
  const key = el("p", { class: "legend" });
  legend(key, groupItems((g) => report.phases.some((p) => p.operations.some((o) => o.group === g && o.share !== undefined))));
  s.append(key);
  const pair = el("div", { class: "pair" });
  s.append(pair);
  for (const phase of report.phases) {
    const rows = phase.operations.filter((o) => o.share !== undefined).sort((a, b) => a.ms - b.ms).slice(-14);
    const box = el("div", {}, el("h3", {}, phase.name + ": " + time(phase.ms) + (phase.name === "decode" ? " a step" : report.batch > 1 ? " all prompts" : " a prompt")));
    pair.append(box);
    const { instance } = chart(box, "Time by operation, " + phase.name, () => 40 + rows.length * 27, () => Object.assign(base(), {
      grid: { left: 148, right: 62, top: 6, bottom: 4 },
      tooltip: Object.assign(base().tooltip, { trigger: "axis", axisPointer: { type: "shadow", shadowStyle: { color: color("roof"), opacity: 0.12 } }, formatter: (p) => tip(phase, rows[p[0].dataIndex]) }),
      xAxis: axis({ type: "value", axisLabel: { show: false }, splitLine: { show: false } }),
      yAxis: axis({ type: "category", data: rows.map((o) => o.name), axisLabel: { color: color("text"), fontSize: 12, width: 136, overflow: "truncate" } }),
      series: [{
        type: "bar", barWidth: 15, cursor: "default",
        data: rows.map((o) => ({ value: o.ms, itemStyle: { color: color(o.group), borderRadius: [0, 4, 4, 0] } })),
        label: { show: true, position: "right", color: color("soft"), fontSize: 12, formatter: (p) => percent(rows[p.dataIndex].share) },
      }],
    }));
    box.addEventListener("mouseleave", () => instance.dispatchAction({ type: "hideTip" }));
  }
}

function roofline() {
  const { peaks } = report;
  if (!peaks) return;
  const marks = report.phases.flatMap((phase) => phase.operations
    .filter((o) => o.ms && o.flops && o.bytes)
    .map((o) => ({ phase, o, value: [o.flops / o.bytes, o.tflops * 1e12] })));
  if (!marks.length) return;
  const s = section("roofline", "Roofline", "How near each operation comes to what this adapter can do, measured in the same run: lines are the limits, larger marks take more time.");
  const key = el("p", { class: "legend" });
  legend(key, [["roof", "decode", "circle"], ["roof", "prefill", "diamond"], ...groupItems((g) => marks.some((m) => m.o.group === g))]);
  s.append(key);
  const xs = marks.map((m) => m.value[0]), ys = marks.map((m) => m.value[1]);
  const bandwidth = peaks.readGBps * 1e9;
  const roofs = [["f32", peaks.f32TFLOPS * 1e12], ["f16", (peaks.f16TFLOPS || 0) * 1e12]].filter((r) => r[1] > 0);
  const left = Math.min(...xs) / 2;
  const highest = Math.max(...roofs.map((r) => r[1]));
  const right = Math.max(...xs, highest / bandwidth) * 5;
  const bottom = Math.min(...ys, left * bandwidth) / 2;
  const top = Math.max(...ys, highest) * 3;
  const grid = { left: 52, right: 18, top: 34, bottom: 44 };
  const decade = (v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-6 ? round(v) : "";
  const height = () => narrow() ? 380 : 460;
  chart(s, "Roofline", height, () => Object.assign(base(), {
    grid,
    tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: (p) => p.data.o ? tip(p.data.phase, p.data.o) + "<br>" + digits(p.value[0]) + " FLOP a byte" : "" }),
    xAxis: axis({ type: "log", min: left, max: right, name: "FLOPs a byte", nameLocation: "middle", nameGap: 26, axisLabel: { color: color("soft"), formatter: decade } }),
    yAxis: axis({ type: "log", min: bottom, max: top, name: "FLOP/s", axisLabel: { color: color("soft"), formatter: decade } }),
    series: [
      ...roofs.map(([name, rate], i) => ({
        type: "line", silent: true, symbol: "none", z: 1, name,
        data: [[left, left * bandwidth], [rate / bandwidth, rate], [right, rate]],
        lineStyle: { color: color("roof"), width: 1.6, type: i ? "dashed" : "solid" },
        endLabel: { show: true, formatter: () => name + " " + prefixed(rate) + "FLOP/s", color: color("soft"), fontSize: 12, align: "right", offset: [-8, rate === highest ? -10 : 12] },
      })),
      {
        type: "scatter", z: 3, cursor: "default",
        data: marks.map(({ phase, o, value }) => ({
          value, phase, o, symbol: phase.name === "decode" ? "circle" : "diamond", symbolSize: 2 * radius(o),
          itemStyle: { color: color(o.group), opacity: 0.8, borderColor: color("card"), borderWidth: 1 },
        })),
      },
    ],
    graphic: { elements: names(marks, roofs.map(([, rate]) => [rate, rate === highest ? -10 : 12]), ([x, y]) => {
      const at = (v, from, to) => Math.log(v / from) / Math.log(to / from);
      const width = s.clientWidth - 2 * parseFloat(getComputedStyle(s).paddingLeft);
      return [grid.left + at(x, left, right) * (width - grid.left - grid.right),
        grid.top + (1 - at(y, bottom, top)) * (height() - grid.top - grid.bottom), width - grid.right];
    }) },
  }));
}
const radius = (o) => 4 + 9 * Math.sqrt(o.share || 0);
/**
 * Names beside the largest marks, where nothing lies under them; place gives the pixels
 * of a value, and where the chart ends. Roofs are named at the right, so much below them.
 */
function names(marks, roofs, place) {
  const least = narrow() ? 0.1 : 0.04, line = 15, elements = [];
  // Boxes that a name must not cover: [left, top, right, bottom].
  const taken = marks.map((m) => {
    const [x, y] = place(m.value), r = radius(m.o);
    return [x - r, y - r, x + r, y + r];
  }).concat(roofs.map(([rate, below]) => {
    const [, y, right] = place([1, rate]);
    return [right - 130, y + below - 9, right, y + below + 9];
  }));
  for (const name of ["decode", "prefill"]) {
    const points = new Map();
    for (const m of marks.filter((m) => m.phase.name === name && m.o.share > least)) {
      const [x, y, right] = place(m.value);
      // Both products of attention are one mark where one kernel runs them.
      const key = x.toFixed() + " " + y.toFixed(), same = points.get(key);
      if (same) same.name = m.o.group === "attention" ? "attention" : same.name + ", " + m.o.name;
      else points.set(key, { x, y, right, r: radius(m.o), name: m.o.name });
    }
    // Decode's names go down from the uppermost mark, prefill's up from the lowest.
    const down = name === "decode" ? 1 : -1;
    const sorted = [...points.values()].sort((a, b) => down * (a.y - b.y));
    for (const p of sorted) {
      const near = sorted.filter((q) => Math.abs(q.x - p.x) < 110 && Math.abs(q.y - p.y) < 60);
      const wide = 7.6 * p.name.length;
      const from = Math.min(...near.map((q) => q.x - q.r)) - 14, to = Math.max(...near.map((q) => q.x + q.r)) + 14;
      const onRight = name === "prefill" ? to + wide < p.right : from - wide < 40;
      const x = onRight ? to : from;
      let y = p.y;
      const box = () => [onRight ? x : x - wide, y - line / 2, onRight ? x + wide : x, y + line / 2];
      const covers = ([l, t, r, b]) => taken.some(([left, top, right, bottom]) => l < right && r > left && t < bottom && b > top);
      for (let tries = 0; tries < 60 && covers(box()); tries++) y += 3 * down;
      taken.push(box());
      elements.push(
        { type: "polyline", silent: true, z: 2, shape: { points: [[p.x, p.y], [x + (onRight ? -8 : 8), y], [x + (onRight ? -2 : 2), y]] }, style: { stroke: color("soft"), fill: "none", lineWidth: 0.8 } },
        { type: "text", silent: true, z: 4, style: { text: p.name, x, y, textAlign: onRight ? "left" : "right", textVerticalAlign: "middle", fill: color("text"), stroke: color("card"), lineWidth: 3, font: "12px " + getComputedStyle(document.body).fontFamily } },
      );
    }
  }
  return elements;
}

/** Events that follow each other closely; of several such runs, the longest. */
function together(events) {
  const runs = [];
  let end = -Infinity;
  for (const e of events) {
    if (e.begin - end > Math.max(40, 0)) runs.push([]);
    runs[runs.length - 1].push(e);
    end = Math.max(end, e.begin + e.ms);
  }
  return runs.sort((a, b) => b.length - a.length)[0] || [];
}
function timeline() {
  const parts = ["decode loop", "profiled decode", "profiled prefill"].filter((p) => report.timeline.some((e) => e.part === p));
  if (!parts.length) return;
  const s = section("timeline", "Timeline", "What the GPU and the CPU did, by one clock. Scroll or pinch to zoom, drag to move.");
  const tabs = el("div", { class: "tabs" });
  const key = el("p", { class: "legend" });
  s.append(tabs, key);
  let part = parts[0];
  const group = (name) => {
    for (const p of report.phases) for (const o of p.operations) {
      const role = name.replace(/^layers\\.\\d+\\./, "");
      if (o.name === role || (role === "attention" && o.group === "attention") || (role.startsWith("sampling") && o.group === "sampling")) return o.group;
    }
    return /norm|rope|f16/.test(name) ? "norm" : /embed|row/.test(name) ? "embedding" : "linear";
  };
  const cpu = { encode: "attention", submit: "sampling", wait: "embedding", readback: "norm" };
  const { draw } = chart(s, "Timeline", 230, () => {
    let events = report.timeline.filter((e) => e.part === part).sort((a, b) => a.begin - b.begin);
    if (part !== "decode loop") events = together(events);
    const lanes = ["CPU", "GPU"].filter((l) => events.some((e) => e.lane === l));
    const tone = (e) => e.lane === "CPU" && cpu[e.name] || (part === "decode loop" ? "linear" : group(e.name));
    const tones = new Set(events.map(tone));
    legend(key, part === "decode loop"
      ? [...(lanes.includes("GPU") ? [["linear", "GPU: steps up to a readback"]] : []), ...Object.entries(cpu).map(([what, name]) => [name, "CPU: " + what])]
      : groupItems((g) => tones.has(g)));
    const origin = Math.min(...events.map((e) => e.begin));
    return Object.assign(base(), {
      grid: { left: 4, right: 36, top: 12, bottom: 58, containLabel: true },
      tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: (p) => "<b>" + escape(p.data.event.name) + "</b><br>" + (p.data.event.detail ? escape(p.data.event.detail) + "<br>" : "") + p.data.event.lane + ", " + time(p.data.event.ms) + "<br>from " + time(Math.max(0, p.value[1])) }),
      xAxis: axis({ type: "value", min: 0, max: "dataMax", axisLabel: { color: color("soft"), hideOverlap: true, formatter: (v) => +v.toPrecision(4) + " ms" } }),
      yAxis: axis({ type: "category", data: lanes, axisLabel: { color: color("text"), fontWeight: 600 } }),
      dataZoom: [
        { type: "inside", filterMode: "weakFilter" },
        { type: "slider", filterMode: "weakFilter", height: 20, bottom: 8, showDetail: false, borderColor: color("line"), fillerColor: color("linear") + "26", handleStyle: { color: color("card"), borderColor: color("soft") }, moveHandleStyle: { color: color("line") }, dataBackground: { lineStyle: { opacity: 0 }, areaStyle: { opacity: 0 } } },
      ],
      series: [{
        type: "custom", clip: true, encode: { x: [1, 2], y: 0 },
        renderItem: (params, api) => {
          const from = api.coord([api.value(1), api.value(0)]), to = api.coord([api.value(2), api.value(0)]);
          const height = Math.min(46, api.size([0, 1])[1] * 0.6);
          const shape = echarts.graphic.clipRectByRect(
            { x: from[0], y: from[1] - height / 2, width: Math.max(1, to[0] - from[0] - 0.5), height },
            { x: params.coordSys.x, y: params.coordSys.y, width: params.coordSys.width, height: params.coordSys.height });
          return shape && { type: "rect", shape: Object.assign({ r: 2 }, shape), style: { fill: api.visual("color") } };
        },
        data: events.map((event) => ({
          event, value: [lanes.indexOf(event.lane), event.begin - origin, event.begin - origin + event.ms],
          itemStyle: { color: color(tone(event)) },
        })),
      }],
    });
  });
  const buttons = parts.map((name) => {
    const button = el("button", { type: "button", "aria-pressed": String(name === part) }, name);
    button.addEventListener("click", () => {
      part = name;
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
      draw();
    });
    return button;
  });
  tabs.append(...buttons);
  const { loop } = report;
  if (!loop) return;
  s.append(el("p", { class: "small soft" }, "A " + (report.batch > 1 ? "step of " + report.batch + " tokens" : "token") + " on the CPU: encode " + time(loop.encodeMs) + ", submit " + time(loop.submitMs) + ", wait " + time(loop.waitMs) + ", readback " + time(loop.readbackMs) +
    (loop.gpuMs === undefined ? "." : ". On the GPU " + time(loop.gpuMs) + "; without gaps it would be " + digits(loop.tokensPerSecondWithoutIdle) + " tokens/s instead of " + digits(loop.tokensPerSecond) + ".")));
}

function coverage() {
  const { calls, flops, refusals } = report.coverage;
  const s = section("coverage", "Coverage", "How much of the matrix products ran on the GPU.");
  for (const [name, { gpu, total }] of [["calls", calls], ["FLOPs", flops]]) {
    const share = total ? gpu / total : 0;
    s.append(el("p", { class: "small" }, percent(share) + " of " + (name === "calls" ? count(total) + " calls" : prefixed(total) + "FLOPs")));
    const fill = el("i");
    fill.style.width = 100 * share + "%";
    s.append(el("div", { class: "bar", role: "img", "aria-label": percent(share) + " of " + name + " on the GPU" }, fill));
  }
  if (!refusals.length) return;
  const rows = refusals.map((r) => el("tr", {}, el("td", {}, r.operations.join(", ")), el("td", {}, count(r.count)), el("td", { class: "why" }, el("code", {}, r.line))));
  s.append(el("div", { class: "scroll" }, el("table", { id: "refusals" }, el("thead", {}, el("tr", {}, el("th", {}, "operation"), el("th", {}, "count"), el("th", { class: "left" }, "refusal"))), el("tbody", {}, ...rows))));
}

function comparison() {
  if (!report.compare) return;
  const s = section("compare", "GPU over CPU", "The same steps on the CPU path, beside what a GPU should give.");
  const rows = report.compare.map((c) => el("tr", {}, el("td", {}, c.phase + ", " + c.what), el("td", {}, c.gpuMs === undefined ? "–" : time(c.gpuMs)),
    el("td", {}, time(c.cpuMs)), el("td", {}, c.factor === undefined ? "–" : digits(c.factor) + "×"), el("td", {}, c.target.join("–") + "×")));
  s.append(el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...["", "GPU", "CPU", "factor", "target"].map((t) => el("th", {}, t)))), el("tbody", {}, ...rows))));
}

function tables() {
  const s = section("table", "Every operation", "Per step. The limit is memory or arithmetic, whichever would take longer at this adapter's measured best.");
  for (const phase of report.phases) {
    s.append(el("h3", {}, phase.name + (phase.factor && phase.factor !== 1 ? ": " + time(phase.ms) + " as it runs, " + time(phase.profiledMs) + " while each dispatch was timed" : ": " + time(phase.ms))));
    const titles = ["operation, kernel", "shape, types", "calls", "time", "share", "FLOPs", "bytes", "FLOP/s", "bytes/s", "of its limit"];
    const whys = new Map();
    const rows = phase.operations.map((o) => {
      const dot = el("i");
      dot.style.background = "var(--" + o.group + ")";
      const why = o.kernel === "none" ? o.reason : o.kernel + (o.fused.length ? " with " + o.fused.join(", ") : "") + ": " + o.reason;
      const constants = Object.entries(o.constants).filter(([k]) => !/_(DTYPE|VIEW|UNIT)$/.test(k)).map(([k, v]) => k + "=" + v).join(" ");
      const key = why + "\\n" + constants;
      if (!whys.has(key)) whys.set(key, { why, constants, names: new Set() });
      whys.get(key).names.add(o.name);
      return el("tr", {}, el("td", {}, dot, o.name, el("small", {}, o.kernel === "none" ? "" : o.kernel)), el("td", { class: "left" }, o.shape, el("small", {}, o.dtypes)),
        el("td", {}, count(o.calls)), el("td", {}, o.ms === undefined ? "–" : time(o.ms)), el("td", {}, o.share === undefined ? "–" : percent(o.share)),
        el("td", {}, o.flops ? prefixed(o.flops) : "–"), el("td", {}, o.bytes ? prefixed(o.bytes) : "–"),
        el("td", {}, o.flops && o.tflops ? prefixed(o.tflops * 1e12) : "–"), el("td", {}, o.bytes && o.gbps ? prefixed(o.gbps * 1e9) : "–"),
        el("td", {}, o.fraction === undefined ? "–" : percent(o.fraction) + " " + o.bound));
    });
    s.append(el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...titles.map((t, i) => el("th", i === 1 ? { class: "left" } : {}, t)))), el("tbody", {}, ...rows))));
    s.append(el("details", {}, el("summary", {}, "Why these kernels, with their constants"), ...[...whys.values()].map(({ why, constants, names }) =>
      el("p", { class: "small choice" }, el("b", {}, [...names].join(", ")), " " + why + " ", el("code", { class: "soft" }, constants)))));
  }
}

function notes() {
  const s = section("notes", "Notes", "How these numbers were made.");
  const choices = report.device.choices.map((c) => c.what + ": " + c.value + " (" + c.reason + ")");
  s.append(el("ul", { class: "notes small" }, ...[...report.notes, ...choices].map((n) => el("li", {}, n))));
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
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 100); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
`;
