/**
 * A thread of {@link CpuPool}.
 *
 * @module
 */
import { type Message, serve } from "./pool.ts";

/** What a module worker's global scope has and a page's does not. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<Message>) => void) | null;
  close(): void;
}

const scope = globalThis as unknown as WorkerScope;
scope.onmessage = ({ data }) => {
  if (serve(data)) scope.close();
};
