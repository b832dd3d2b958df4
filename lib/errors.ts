/**
 * Errors that callers may want to tell apart.
 *
 * @module
 */

/** There is no WebGPU adapter, or it lacks what the kernels need. */
export class NoAdapterError extends Error {
  /** `NoAdapterError` */
  override name = "NoAdapterError";
}

/** The device was lost, ran out of memory, or rejected a command. */
export class DeviceError extends Error {
  /** `DeviceError` */
  override name = "DeviceError";
}

/** The device has no room for that many or that long sequences; use fewer or shorter ones. */
export class MemoryError extends DeviceError {
  /** `MemoryError` */
  override name = "MemoryError";
}

/** The message of anything thrown, on one line. */
export function errorText(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replaceAll(/\s+/g, " ").trim();
}
