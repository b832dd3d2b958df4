// The code of jsr:@std/assert, from npm, for machines that cannot reach JSR.
// @ts-types="./types.d.ts"
export * from "npm:deno-std@1.4.0/assert/mod.js";
