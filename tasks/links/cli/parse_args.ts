// The code of jsr:@std/cli/parse-args, from npm, for machines that cannot reach JSR.
// @ts-types="./types.d.ts"
export * from "npm:deno-std@1.4.0/cli/parse_args.js";
