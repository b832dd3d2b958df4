// The part of @std/cli/parse-args that this project uses.
export interface ParseOptions<S extends string, B extends string> {
  string?: readonly S[];
  boolean?: readonly B[];
  alias?: Record<string, string>;
  default?: Record<string, unknown>;
  collect?: readonly string[];
  negatable?: readonly string[];
  /** Called for each argument that is not declared; false drops it. */
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}
export function parseArgs<S extends string = never, B extends string = never>(
  args: string[],
  options?: ParseOptions<S, B>,
):
  & { _: (string | number)[] }
  & Partial<Record<S, string>>
  & Partial<Record<B, boolean>>
  & Record<string, unknown>;
