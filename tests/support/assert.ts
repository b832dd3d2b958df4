// The code of jsr:@std/assert, from npm, so that tests also run where JSR cannot be reached.
// @ts-types="./assert_types.d.ts"
export * from "npm:deno-std@1.4.0/assert/mod.js";
