/**
 * JSON schemas as grammars: which tokens may come next, so that a reply is valid.
 *
 * @module
 */
export { argumentsSchema, callGrammarOf, requireJsonCalls } from "./calls.ts";
export { SchemaError } from "./error.ts";
export { grammarOf, type Lead, SchemaGrammar, SchemaMask } from "./mask.ts";
