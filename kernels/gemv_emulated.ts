/**
 * The variant of gemv.ts for threads that a CPU emulates (SPREAD "rows"). Each lane sums
 * ROWS rows of w of its own, and loads one element of x that it broadcasts to its lane
 * group, because llvmpipe runs loads lane by lane but a broadcast is one instruction.
 * With W_IN "texture", w is read from a copy in a texture, which llvmpipe loads for all
 * lanes at once. `write` is gemv.ts's code that writes the sums.
 */
export const emulated = (write: string) => /* wgsl */ `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let lane = tid % LANES;
  let g = (wg.y * groups.x + wg.x) * WORKGROUP + tid;
  @if NORM {
    var squared = 0.0;
    @unroll for (var i = 0; i < PART_STEPS; i++) {
      let part = i * LANES + lane;
      squared += select(0.0, squares_at(min(part, PARTS - 1u)), part < PARTS);
    }
    let factor = inverseSqrt(lanes_sum(squared, tid) / f32(u.k) + u.eps);
  } @else { let factor = 1.0; }
  @split var acc: array<f32, ROWS>;
  @split var raw: array<w_Raw, ROWS>;
  @split var base: array<u32, ROWS>;
  @unroll for (var i = 0; i < ROWS; i++) { base[i] = w_row(g, i) * UNITS; }
  for (var unit = 0u; unit < UNITS; unit++) {
    @unroll for (var i = 0; i < ROWS; i++) {
      raw[i] = w_load(base[i] + unit);
    }
    @split var four: array<vec4f, FOURS>;
    @unroll for (var from = 0; from < 4 * FOURS; from += TAKEN) {
      let at = unit * (4u * FOURS) + from + lane % TAKEN;
      @if NORM { let taken = x_at(at) * norm_at(at); } @else { let taken = x_at(at); }
      @unroll for (var e = 0; e < TAKEN; e++) { four[(from + e) / 4][(from + e) % 4] = subgroupBroadcast(taken, u32(e)); }
    }
    @unroll for (var f = 0; f < FOURS; f++) {
      @unroll for (var i = 0; i < ROWS; i++) { acc[i] += dot(w_four[f](raw[i]), four[f]); }
    }
  }
  @unroll for (var i = 0; i < ROWS; i++) { acc[i] *= factor; }
  @if EPILOGUE == "add" {
    @split var residual: array<f32, ROWS>;
    @unroll for (var i = 0; i < ROWS; i++) { residual[i] = y[u.column + w_row(g, i)]; }
  }
  ${write}
  @if EPILOGUE == "add" {
    sum = lanes_sum(sum, tid);
    if (lane == 0u && g / LANES < PARTS) { squares[g / LANES] = sum; }
  }
}`;
