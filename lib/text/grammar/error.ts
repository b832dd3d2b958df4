/**
 * The error for schemas that cannot be guaranteed.
 *
 * @module
 */
import { OptionError, quoted } from "../../errors.ts";

/** A JSON schema is wrong, or asks for something that cannot be guaranteed. */
export class SchemaError extends OptionError {
  /** Always `SchemaError`. */
  override name = "SchemaError";

  /** @ignore Thrown by whatever takes a schema. */
  constructor(
    /** Where the schema has it, as a JSON pointer such as `#/properties/age`. */
    readonly path: string,
    /** The keyword, such as `minimum`; empty if it is the schema as a whole. */
    readonly keyword: string,
    why: string,
  ) {
    const where = keyword ? `${keyword} at ${quoted(path)}` : quoted(path);
    super("schema", `Cannot use the schema: ${where} ${why}`);
  }
}
