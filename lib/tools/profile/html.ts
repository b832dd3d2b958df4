/**
 * A profile as one self-contained page: works offline, in dark and light mode, on
 * phones and desktops.
 *
 * @module
 */
import style from "./page.css" with { type: "text" };
import script from "./page.js" with { type: "text" };
import type { ProfileReport } from "./report.ts";

/** The page, with Apache ECharts embedded to draw its charts. */
export async function profileHtml(report: ProfileReport): Promise<string> {
  const { default: echarts } = await import(
    "npm:echarts@6.0.0/dist/echarts.min.js",
    { with: { type: "text" } }
  );
  const title = `Profile of ${escapeHtml(report.model)}`;
  // A closing tag inside the data must not end the element.
  const data = JSON.stringify(report).replaceAll("<", "\\u003c");
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>${title}</title>
<style>${style}</style>
</head>
<body>
<main id="page"></main>
<script type="application/json" id="report">${data}</script>
<script>${echarts}</script>
<script>${script}</script>
</body>
</html>
`;
}

function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}
