/**
 * Error classes that callers may want to tell apart.
 *
 * @module
 */

/** There is no WebGPU adapter, or it does not meet the kernels' requirements. */
export class NoAdapterError extends Error {
  /** Always `NoAdapterError`. */
  override name = "NoAdapterError";
}

/** The device was lost, ran out of memory, or rejected a command. */
export class DeviceError extends Error {
  /** Always `DeviceError`. */
  override name = "DeviceError";
}

/**
 * The device lacks memory for this many sequences, or for sequences this long. Use
 * fewer or shorter ones.
 */
export class MemoryError extends DeviceError {
  /** Always `MemoryError`. */
  override name = "MemoryError";
}

/** Returns the message of a thrown value, on one line. */
export function errorText(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replaceAll(/\s+/g, " ").trim();
}
