/** Counts the tokens that go through a model. */
import { KvCache } from "../../lib/model/kv_cache.ts";

/**
 * Counts the tokens of passes until it is disposed: those of prompts, and on the CPU those
 * of decode steps, which a GPU's decode loop runs without the host.
 */
export function prompted(): Disposable & { readonly tokens: number } {
  const { begin } = KvCache.prototype;
  let tokens = 0;
  KvCache.prototype.begin = function (pass) {
    tokens += pass.sequences * pass.tokens;
    return begin.call(this, pass);
  };
  return {
    get tokens() {
      return tokens;
    },
    [Symbol.dispose]: () => void (KvCache.prototype.begin = begin),
  };
}
