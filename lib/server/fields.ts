/**
 * Reads the fields of a request's JSON, strictly: a wrong type is refused, and so is a field
 * that nobody reads, since it would have no effect.
 *
 * @module
 */
import { described, quoted } from "../errors.ts";
import { isObject } from "../json.ts";
import { meant } from "../text/options.ts";
import { ApiError, CANNOT, unsupported, wrongParameter } from "./errors.ts";

/** The fields of a JSON object; null is as good as absent. */
export class Fields {
  readonly #known = new Set<string>();

  /** @param path of the object in the request, such as `stream_options.` */
  constructor(
    readonly json: Record<string, unknown>,
    readonly path: string = "",
  ) {}

  /** A field as it is; undefined if it is absent or null. */
  get(name: string): unknown {
    this.#known.add(name);
    return Object.hasOwn(this.json, name)
      ? this.json[name] ?? undefined
      : undefined;
  }

  /** The error for a field with a wrong value. */
  wrong(name: string, must: string): ApiError {
    const value = described(this.get(name) ?? null);
    return wrongParameter(this.path + name, `is ${value}, must be ${must}`);
  }

  #typed<T>(
    name: string,
    fits: (value: unknown) => boolean,
    must: string,
  ): T | undefined {
    const value = this.get(name);
    if (value === undefined || fits(value)) return value as T | undefined;
    throw this.wrong(name, must);
  }

  text(name: string): string | undefined {
    return this.#typed(name, (value) => typeof value === "string", "a string");
  }

  flag(name: string): boolean | undefined {
    return this.#typed(
      name,
      (value) => typeof value === "boolean",
      "true or false",
    );
  }

  number(name: string, least = -Infinity, most = Infinity): number | undefined {
    const range = least === -Infinity ? "" : ` from ${least} to ${most}`;
    return this.#typed(
      name,
      (value) => typeof value === "number" && value >= least && value <= most,
      `a number${range}`,
    );
  }

  whole(
    name: string,
    least: number = -Number.MAX_SAFE_INTEGER,
    most: number = Number.MAX_SAFE_INTEGER,
  ): number | undefined {
    const range = least === -Number.MAX_SAFE_INTEGER
      ? ""
      : most === Number.MAX_SAFE_INTEGER
      ? ` of at least ${least}`
      : ` from ${least} to ${most}`;
    return this.#typed(
      name,
      (value) =>
        Number.isSafeInteger(value) && (value as number) >= least &&
        (value as number) <= most,
      `an integer${range}`,
    );
  }

  list(name: string): unknown[] | undefined {
    return this.#typed(name, Array.isArray, "a list");
  }

  oneOf<T extends string>(name: string, values: readonly T[]): T | undefined {
    return this.#typed(
      name,
      (value) => values.includes(value as T),
      `one of ${values.join(", ")}`,
    );
  }

  /** The fields of an object. */
  object(name: string): Fields | undefined {
    const json = this.#typed<Record<string, unknown>>(
      name,
      isObject,
      "an object",
    );
    return json && new Fields(json, `${this.path}${name}.`);
  }

  /** Accepts fields that have no effect here, whatever they hold. */
  ignore(names: readonly string[]): void {
    for (const name of names) this.#known.add(name);
  }

  /** Refuses fields that are given, unless with a value that changes nothing. */
  refuse(
    names: Readonly<Record<string, readonly unknown[]>>,
    instead: Readonly<Record<string, string>> = {},
  ): void {
    for (const [name, harmless] of Object.entries(names)) {
      const value = this.get(name);
      if (value === undefined) continue;
      const text = JSON.stringify(value);
      if (harmless.some((one) => JSON.stringify(one) === text)) continue;
      throw unsupported(this.path + name, instead[name]);
    }
  }

  /** @throws {ApiError} if there is a field that was not asked for. */
  end(): void {
    const known = [...this.#known];
    for (const [name, value] of Object.entries(this.json)) {
      if (this.#known.has(name) || value === null) continue;
      const close = meant(name, known, {});
      const param = this.path + name;
      throw new ApiError(
        400,
        `${CANNOT}: the parameter ${quoted(param)} is unknown, ${
          close === undefined
            ? "must be left out"
            : `did you mean ${this.path}${close}?`
        }`,
        { param, code: "unknown_parameter" },
      );
    }
  }
}
