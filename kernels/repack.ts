import { storedRowBytes } from "../lib/formats/format.ts";
import type { Gather } from "../lib/formats/gather.ts";
import { packed } from "../lib/formats/matrix.ts";
import { formatNamed, FORMATS } from "../lib/formats/mod.ts";
import { splitGrid } from "../lib/webgpu/kernel.ts";
import { u32Tensor } from "./case.ts";
import { defineKernel } from "./define.ts";

/**
 * A plane's description as the kernel reads it: for each word where its fields begin, and
 * where the last ones end; then the fields, two words each.
 */
export function repackTable({ words }: Gather): Uint32Array<ArrayBuffer> {
  const all = words.flat();
  const begins = [0];
  for (const own of words) begins.push(begins.at(-1)! + 2 * own.length);
  return Uint32Array.from([
    ...begins.map((begin) => begins.length + begin),
    ...all.flatMap(({ byte, shift, mask, by }) => [
      byte | shift << 16 | by << 24,
      mask,
    ]),
  ]);
}

/**
 * Rearranges blocks as files store them into a plane of their format; see
 * lib/formats/gather.ts. `stored` has them in bytes `begin` to `end`. `period` words of the
 * plane are made from `bytes` bytes. Each thread makes one of `words` words, from word
 * `to` on; bits of blocks after the end become zeros.
 */
export const repack = defineKernel<
  { format: string; plane: number; rows: number; k: number; begin: number }
>({
  name: "repack",
  buffers: {
    stored: "any as raw",
    fields: "any as raw",
    plane: "inout any as raw",
  },
  uniforms: {
    begin: "u32",
    end: "u32",
    bytes: "u32",
    period: "u32",
    to: "u32",
    words: "u32",
  },
  constants: { WORKGROUP: 256 },
  grid: ({ words }, { WORKGROUP }) => splitGrid(words / WORKGROUP),
  body: /* wgsl */ `
// Four bytes, not aligned.
fn bytes_at(at: u32) -> u32 {
  let low = stored[at / 4u] >> (at % 4u * 8u);
  return low | ((stored[at / 4u + 1u] << 1u) << (31u - at % 4u * 8u));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) tid: u32) {
  let i = (wg.y * groups.x + wg.x) * WORKGROUP + tid;
  if (i >= u.words) { return; }
  let first = u.begin + i / u.period * u.bytes;
  var word = 0u;
  for (var f = fields[i % u.period]; f < fields[i % u.period + 1u]; f += 2u) {
    let field = fields[f];
    let at = first + (field & 0xffffu);
    if (at < u.end) {
      word |= ((bytes_at(at) >> ((field >> 16u) & 255u)) & fields[f + 1u]) << (field >> 24u);
    }
  }
  plane[u.to + i] = word;
}`,
  cases: FORMATS.flatMap(({ name, elements, gathers = [] }) =>
    gathers.flatMap((_, plane) => [
      { format: name, plane, rows: 9, k: 33 * 32, begin: 0 },
      { format: name, plane, rows: 3, k: elements, begin: 5 },
    ])
  ).map((one) => ({
    ...one,
    k: one.k % formatNamed(one.format).elements === 0 ? one.k : 5 * 256,
  })),
  makeCase({ format: name, plane, rows, k, begin }, { random }) {
    const format = formatNamed(name), to = 3, after = 2;
    const gather = format.gathers![plane];
    const size = rows * storedRowBytes(format, k);
    const stored = u32Tensor([Math.ceil((begin + size + 3) / 4)]);
    const bytes = new Uint8Array(stored.data.buffer as ArrayBuffer);
    for (let i = 0; i < bytes.length; i++) bytes[i] = random.int(0, 255);
    const fields = repackTable(gather);
    const words = Math.ceil(rows * format.planes(k)[plane].rowBytes / 4);
    const out = u32Tensor([to + words + after]);
    return {
      what: `${name} [${rows}, ${k}], plane ${plane}`,
      operands: {
        stored,
        fields: u32Tensor([fields.length], fields),
        plane: out,
      },
      uniforms: {
        begin,
        end: begin + size,
        bytes: gather.bytes,
        period: gather.words.length,
        to,
        words,
      },
      expected: () => {
        const own = bytes.slice(begin, begin + size);
        const made = new Uint8Array(4 * words);
        made.set(packed(format, own, k, rows)[plane]);
        const values = Uint32Array.from(out.data);
        values.set(new Uint32Array(made.buffer), to);
        return [{ of: "plane", values, tolerance: 0 }];
      },
    };
  },
});
