/**
 * Errors that callers tell apart.
 *
 * @module
 */

/** No adapter could be had, or it refuses what is needed. */
export class NoAdapterError extends Error {
  override name = "NoAdapterError";
}

/** The device was lost, ran out of memory, or refused a command. */
export class DeviceError extends Error {
  override name = "DeviceError";
}

/** A device has no room for so many or so long sequences; fewer or shorter ones must do. */
export class MemoryError extends DeviceError {
  override name = "MemoryError";
}

/** The message of whatever was thrown, on one line. */
export function errorText(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replaceAll(/\s+/g, " ").trim();
}
