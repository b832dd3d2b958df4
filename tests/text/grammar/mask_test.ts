/** Masks of tokens: exactly those that the grammar takes, and what may come before JSON. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { start } from "../../../lib/text/grammar/automaton.ts";
import { buildGrammar } from "../../../lib/text/grammar/build.ts";
import { SchemaGrammar, type SchemaMask } from "../../../lib/text/grammar/mask.ts";
import { createTokenizer, type Tokenizer } from "../../../lib/text/tokenizer.ts";
import { remaining, soonest } from "../../support/grammar.ts";
import { type Random, randomTest } from "../../support/random.ts";
import { randomSchema } from "../../support/json_schemas.ts";
import { SchemaError } from "../../../lib/text/grammar/error.ts";

const STORIES = new URL("../../../models/stories-3m/", import.meta.url);
const stories = createTokenizer("stories", {
  tokenizer: await Deno.readTextFile(new URL("tokenizer.json", STORIES)),
  config: await Deno.readTextFile(new URL("tokenizer_config.json", STORIES)),
  chatTemplate: undefined,
});
