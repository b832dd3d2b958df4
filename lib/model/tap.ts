/**
 * Observing a forward pass: every verb of an {@linkcode Ops} goes through one function,
 * which can time it, record it or repeat it elsewhere. New verbs need no change here.
 *
 * @module
 */
import type { Matrix } from "../formats/matrix.ts";
import { KvCache } from "./kv_cache.ts";
import type { Ops } from "./ops.ts";

/** The name of a verb. */
export type Verb = keyof Ops<unknown>;

/** A call of one verb; `verb` determines the types of `args`. */
export type Call<T> = {
  [V in Verb]: {
    readonly verb: V;
    readonly args: Parameters<Ops<T>[V]>;
  };
}[Verb];

/** Wraps each verb of `ops` in `around`, which decides when to `run` it. */
export function tap<T>(
  ops: Ops<T>,
  around: (call: Call<T>, run: () => T) => T,
): Ops<T> {
  return new Proxy(ops, {
    get(target, verb) {
      const member: unknown = Reflect.get(target, verb);
      if (typeof member !== "function") return member;
      return (...args: unknown[]) =>
        around(
          { verb, args } as unknown as Call<T>,
          () => Reflect.apply(member, target, args),
        );
    },
  });
}

/** Runs a call on `ops`. */
export function perform<T>(ops: Ops<T>, { verb, args }: Call<T>): T {
  return Reflect.apply(ops[verb], ops, args);
}

/** The tensors among a call's arguments, in order. Weights are matrices, not tensors. */
export function tensorsOf<T extends object>({ args }: Call<T>): T[] {
  return args.filter(isTensor) as T[];
}

/**
 * Translates a call for another implementation, with its own tensors, weights and
 * cache.
 */
export function translate<A extends object, B>(
  { verb, args }: Call<A>,
  tensor: (tensor: A) => B,
  weight: (weight: Matrix<A>) => Matrix<B>,
  cache: KvCache<B>,
): Call<B> {
  const translated = (arg: unknown): unknown => {
    if (Array.isArray(arg)) return arg.map(translated);
    if (arg instanceof KvCache) return cache;
    if (isMatrix(arg)) return weight(arg as Matrix<A>);
    return isTensor(arg) ? tensor(arg as A) : arg;
  };
  return { verb, args: args.map(translated) } as unknown as Call<B>;
}

function isMatrix(arg: unknown): boolean {
  return typeof arg === "object" && arg !== null && "parts" in arg;
}

function isTensor(arg: unknown): boolean {
  return typeof arg === "object" && arg !== null && !Array.isArray(arg) &&
    !isMatrix(arg) && !(arg instanceof KvCache);
}
