/**
 * A worker thread of {@link Encoder}.
 *
 * @module
 */
import { type EncodeJob, type EncodeReport, report } from "./encode.ts";

/** The part of a module worker's global scope that is used here. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<EncodeJob>) => void) | null;
  postMessage(report: EncodeReport, transfer: Transferable[]): void;
}

const scope = globalThis as unknown as WorkerScope;
scope.onmessage = ({ data }) => {
  const done = report(data);
  scope.postMessage(done, done.encoded ? [done.encoded.buffer] : []);
};
