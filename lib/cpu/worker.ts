/**
 * A worker thread of {@link CpuPool}.
 *
 * @module
 */
import { type Message, serve } from "./pool.ts";

/** The part of a module worker's scope that is used here. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<Message>) => void) | null;
  close(): void;
}

const scope = globalThis as unknown as WorkerScope;
scope.onmessage = ({ data }) => {
  if (serve(data)) scope.close();
};
