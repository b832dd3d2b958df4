/**
 * A thread of {@link CpuPool}.
 *
 * @module
 */
import { type Message, serve } from "./pool.ts";

/** What a module worker has and a page has not. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<Message>) => void) | null;
  close(): void;
}

const scope = globalThis as unknown as WorkerScope;
scope.onmessage = ({ data }) => {
  if (serve(data)) scope.close();
};
