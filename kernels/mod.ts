/**
 * Exports every kernel, one per line. list.ts turns them into the list that the tools and
 * tests read.
 *
 * @module
 */
export { addPending } from "./add_pending.ts";
export { argmax } from "./argmax.ts";
export { attendDecode } from "./attend_decode.ts";
export { attendPrefill } from "./attend_prefill.ts";
export { attendPrefillF16 } from "./attend_prefill_f16.ts";
export { attendPrefillMatrix } from "./attend_prefill_matrix.ts";
export { batchedGemm } from "./batched_gemm.ts";
export { chooseExperts } from "./choose_experts.ts";
export { embed } from "./embed.ts";
export { expertGemv } from "./expert_gemv.ts";
export { expertGemm } from "./expert_gemm.ts";
export { expertGemmMatrix } from "./expert_gemm_matrix.ts";
export { expertGemvInt8 } from "./expert_gemv_int8.ts";
export { feedForward } from "./feed_forward.ts";
export { gatherRows } from "./gather_rows.ts";
export { gemm } from "./gemm.ts";
export { gemmMatrix } from "./gemm_matrix.ts";
export { gemv } from "./gemv.ts";
export { gemvColumns } from "./gemv_columns.ts";
export { gemvInt8 } from "./gemv_int8.ts";
export { gemvRows } from "./gemv_rows.ts";
export { gemvRowsInt8 } from "./gemv_rows_int8.ts";
export { maxAbs } from "./max_abs.ts";
export { mergeSplits } from "./merge_splits.ts";
export { peakFma } from "./peak_fma.ts";
export { peakRead } from "./peak_read.ts";
export { qkNormRope } from "./qk_norm_rope.ts";
export { quantize } from "./quantize.ts";
export { repack } from "./repack.ts";
export { rmsNorm } from "./rms_norm.ts";
export { sampleAdjust } from "./sample_adjust.ts";
export { sampleDraw } from "./sample_draw.ts";
export { sampleFinish } from "./sample_finish.ts";
export { sampleGreedy } from "./sample_greedy.ts";
export { sampleHistogram } from "./sample_histogram.ts";
export { sampleLogprobs } from "./sample_logprobs.ts";
export { sampleTopK } from "./sample_top_k.ts";
export { sortExperts } from "./sort_experts.ts";
export { sumExperts } from "./sum_experts.ts";
export { sumSplits } from "./sum_splits.ts";
export { swiglu } from "./swiglu.ts";
export { synthesize } from "./synthesize.ts";
export { toF16 } from "./to_f16.ts";
export { toInt8 } from "./to_int8.ts";
export { unpack } from "./unpack.ts";
