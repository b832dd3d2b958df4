/**
 * JSON schemas as grammars: which tokens may come next, so that a reply is valid.
 *
 * @module
 */
export { SchemaError } from "./error.ts";
export { type Lead, SchemaGrammar, SchemaMask } from "./mask.ts";
