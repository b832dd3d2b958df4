/**
 * The process that lib/tools/doctor/apart.ts starts: examines an adapter.
 *
 *   deno run -A lib/tools/doctor/process.ts EXAMINATION
 *
 * EXAMINATION is the JSON of an `ApartExamination`.
 *
 * @module
 */
import { openDevice } from "../../device/open_device.ts";
import type { ApartExamination, News } from "./apart.ts";
import { examineDevice } from "./device.ts";
import type { Reporter } from "./report.ts";

const print = (news: News) => console.log(JSON.stringify(news));

/** Prints one line of JSON for each kernel started and each finding. */
export const printer: Reporter = {
  found: (finding) => print(finding),
  starting: (starts) => print({ starts }),
};

if (import.meta.main) {
  const { webgpu, adapter, ...examination }: ApartExamination = JSON.parse(
    Deno.args[0],
  );
  using gpu = await openDevice({ webgpu, adapter });
  await examineDevice(gpu, examination, printer);
}
