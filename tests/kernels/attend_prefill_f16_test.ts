import { gpuTest } from "../support/gpu.ts";
import { testHalfPrefill } from "../support/half_prefill.ts";

testHalfPrefill("attendPrefillF16", "f16", (name, fn) => {
  gpuTest(name, async (gpu, trial) => {
    if (gpu.f16) await fn(trial); // the kernel is never chosen without f16
  });
});
