/**
 * Style of the page that lib/tools/profile/html.ts writes.
 *
 * @module
 */

/** Colours are variables, so that dark and light differ in one place. */
export const STYLE = /* css */ `
:root {
  --bg: #f6f7f9; --card: #fff; --text: #1b2330; --soft: #5d6878; --line: #e1e5eb;
  --red: #c8321f; --yellow: #b06f00; --green: #1b7f4b; --tint: 7%;
  --linear: #2f6fde; --attention: #e07b1a; --norm: #159a8c; --embedding: #8a93a3;
  --sampling: #8d56d6; --other: #b0577f; --roof: #6b7686;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #0f1319; --card: #181d26; --text: #e6eaf1; --soft: #98a3b3; --line: #2a313d;
    --red: #ff7a66; --yellow: #f2b544; --green: #4fcf8d; --tint: 12%;
    --linear: #6a9dff; --attention: #ffa04d; --norm: #3fcabb; --embedding: #9aa4b5;
    --sampling: #b98cff; --other: #e28ab3; --roof: #8b97a9;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 0 0 2px; }
.soft { color: var(--soft); } p { margin: 0; }
.small { font-size: 13px; }
header { margin-bottom: 20px; }
.verdicts { display: grid; gap: 10px; margin-bottom: 18px; padding: 0; list-style: none; }
.verdict { border-radius: 10px; padding: 11px 14px; background: color-mix(in srgb, var(--tone) var(--tint), var(--card));
  border: 1px solid color-mix(in srgb, var(--tone) 35%, transparent); display: flex; gap: 11px; }
.verdict b { color: var(--tone); font-size: 16px; line-height: 1.4; }
.verdict:first-child { font-size: 17px; font-weight: 600; }
.red { --tone: var(--red); } .yellow { --tone: var(--yellow); } .green { --tone: var(--green); }
.tiles { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin-bottom: 18px; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 11px 14px; } .tile strong { display: block; font-size: 21px; line-height: 1.3; font-variant-numeric: tabular-nums; }
section { padding: 16px 18px; margin-bottom: 18px; min-width: 0; }
.chart { width: 100%; height: 360px; margin-top: 10px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 18px; }
.bar { height: 12px; border-radius: 6px; overflow: hidden; background: color-mix(in srgb, var(--red) 75%, var(--card)); margin: 5px 0 12px; }
.bar i { display: block; height: 100%; background: var(--green); }
.scroll { overflow-x: auto; margin: 10px -18px 0; padding: 0 18px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: 6px 9px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, .left { text-align: left; }
td:first-child { position: sticky; left: -18px; background: var(--card); font-weight: 600; }
td.why { white-space: normal; min-width: 340px; text-align: left; color: var(--soft); }
td i, .legend i { display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-right: 7px; }
td small { display: block; min-height: 1.4em; font-size: 11.5px; line-height: 1.4; font-weight: 400; color: var(--soft); } td:first-child small { margin-left: 16px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 6px; font-size: 13px; color: var(--soft); } .legend span { white-space: nowrap; }
.legend i.circle { border-radius: 50%; } .legend i.diamond { border-radius: 0; transform: rotate(45deg); }
code { font: 12px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.tabs { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 10px; }
button { font: inherit; font-size: 13px; color: var(--text); background: transparent; border: 1px solid var(--line);
  border-radius: 8px; padding: 5px 11px; cursor: pointer; }
button[aria-pressed="true"] { background: color-mix(in srgb, var(--linear) 15%, var(--card)); border-color: var(--linear); }
button:focus-visible { outline: 2px solid var(--linear); outline-offset: 2px; }
details { margin-top: 10px; } summary { cursor: pointer; font-size: 13px; color: var(--soft); }
.choice { margin-top: 8px; }
ul.notes { margin: 8px 0 0; padding-left: 18px; }
h3 { font-size: 14px; margin: 14px 0 0; }
@media (max-width: 760px) {
  main { padding: 18px 12px 40px; } h1 { font-size: 20px; }
  .pair { grid-template-columns: 1fr; } section { padding: 14px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .scroll { margin: 10px -14px 0; padding: 0 14px; } td:first-child { left: -14px; }
  .verdict:first-child { font-size: 16px; }
}`;
