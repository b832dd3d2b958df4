/**
 * How many tokens a sequence may have.
 *
 * @module
 */
import { DeviceError } from "../errors.ts";
import type { Choice } from "./choice.ts";

/**
 * Maximum tokens per sequence unless the options say otherwise: enough for a chat, while
 * the cache takes less memory than the weights (0.47 GB in f16 against 1.2 GB for Qwen3
 * 0.6B). Not measured: it decides memory, not speed.
 */
const DEFAULT_CONTEXT = 4096;

/** A context length and how it was chosen. */
export interface ContextChoice {
  tokens: number;
  choice: Choice;
}

/**
 * The default context of a checkpoint whose `max_position_embeddings` is `plain`. Longer
 * contexts that YaRN allows must be requested.
 */
export function defaultContext(plain: number): number {
  return Math.min(DEFAULT_CONTEXT, plain);
}

/**
 * Chooses the requested context, or else the largest that fits, up to 4,096.
 *
 * @throws {DeviceError} if the requested context does not fit.
 */
export function chooseContext({ name, plain, most, requested, room }: {
  /** The checkpoint's name. */
  name: string;
  /** The checkpoint's `max_position_embeddings`. */
  plain: number;
  /** The longest context it allows, with YaRN. */
  most: number;
  requested?: number;
  /**
   * The bytes of one layer's keys that `whose` allows, those per position, and those of a
   * smaller type.
   */
  room?: {
    bytes: number;
    perPosition: number;
    whose: string;
    smaller?: { name: string; perPosition: number };
  };
}): ContextChoice {
  const fits = room ? Math.floor(room.bytes / room.perPosition) : Infinity;
  const choice = (tokens: number, reason: string) => ({
    tokens,
    choice: { what: "context", value: `${tokens} tokens`, reason },
  });
  if (requested === undefined) {
    const tokens = defaultContext(plain);
    if (fits < tokens) {
      return choice(
        fits,
        `${room!.whose} ${room!.bytes} bytes of one layer's keys`,
      );
    }
    return tokens === most
      ? choice(tokens, "the longest that the checkpoint allows")
      : choice(tokens, `the default; the checkpoint allows ${most}`);
  }
  if (requested > fits) {
    throw new DeviceError(
      `Cannot load ${name}: a context of ${requested} tokens takes ${
        requested * room!.perPosition
      } bytes for one layer's keys, ${room!.whose} ${room!.bytes}${
        smallerText(requested, room!)
      }`,
    );
  }
  return choice(requested, "it was asked for");
}

/** What a smaller type has room for, if it helps. */
function smallerText(
  requested: number,
  { bytes, smaller }: {
    bytes: number;
    smaller?: { name: string; perPosition: number };
  },
): string {
  if (!smaller) return "";
  const fits = Math.floor(bytes / smaller.perPosition);
  return fits < requested
    ? ""
    : `; with ${smaller.name} it takes ${requested * smaller.perPosition}`;
}
