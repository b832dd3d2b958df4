/**
 * A page to chat with the model, as one self-contained document that needs nothing from
 * elsewhere.
 *
 * @module
 */
import style from "./page.css" with { type: "text" };
import markup from "./page.html" with { type: "text" };
import markdown from "./markdown.js" with { type: "text" };
import script from "./page.js" with { type: "text" };

const code = markdown + script;

/** The document and its headers; they allow no script or style but its own. */
export async function chatPage(): Promise<Response> {
  const [styleHash, scriptHash] = await Promise.all([hash(style), hash(code)]);
  const policy = [
    "default-src 'none'",
    `style-src '${styleHash}'`,
    `script-src '${scriptHash}'`,
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ];
  // Functions, because "$" means something in a replacement.
  const page = markup
    .replace("<!-- style -->", () => `<style>${style}</style>`)
    .replace("<!-- script -->", () => `<script>${code}</script>`);
  return new Response(page, {
    headers: {
      "content-type": "text/html; charset=utf-8",
      "content-security-policy": policy.join("; "),
      "cache-control": "no-cache",
      "referrer-policy": "no-referrer",
      "x-content-type-options": "nosniff",
    },
  });
}

/** The hash of an element's text, as a policy names it. */
async function hash(text: string): Promise<string> {
  const bytes = new TextEncoder().encode(text);
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return `sha256-${new Uint8Array(digest).toBase64()}`;
}
