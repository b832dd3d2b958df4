import { u32Tensor } from "./case.ts";
import { defineKernel } from "./define.ts";
import { randomChoice } from "./expert_case.ts";
import { groupTiles } from "../lib/dispatch/experts.ts";

interface SortCase {
  m: number;
  experts: number;
  used: number;
  tile: number;
}

/** Marks a place that no pair has, and a tile that no expert has. */
export const NONE = 0xffffffff;

/**
 * Groups pairs of a row and an expert by expert, so that a matmul's tile of TILE rows has
 * one expert. A group begins with a tile and is padded to whole tiles:
 *
 * - `groups`: the expert of each tile, NONE past the last;
 * - `order`: the pair at each place, `row · used + s`, NONE for padding;
 * - `places`: the place of each pair.
 *
 * Which places of its group a pair gets may differ from one time to the next. The results
 * of a matmul do not depend on it, since each row is multiplied by itself.
 *
 * A counting sort in one workgroup.
 */
export const sortExperts = defineKernel<SortCase>({
  name: "sortExperts",
  buffers: {
    chosen: "choices used",
    groups: "out tiles",
    order: "out padded",
    places: "out pairs",
  },
  constants: { EXPERTS: 1, TILE: 32, WORKGROUP: 256 },
  grid: () => [1, 1, 1],
  cost: (call) => {
    const { pairs, padded } = call.dispatch.dims;
    return call.whole({
      name: call.role,
      group: "other",
      shape: `[${pairs}]`,
      dtypes: "f32 → u32",
      bytes: 4 * (3 * pairs + padded),
    });
  },
  body: /* wgsl */ `
var<workgroup> counts: array<atomic<u32>, EXPERTS>;
var<workgroup> begins: array<u32, EXPERTS>;

fn expert_of(pair: u32) -> u32 {
  return min(u32(chosen_at(pair / u.used * 2u * u.used + pair % u.used)), EXPERTS - 1u);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) tid: u32) {
  for (var e = tid; e < EXPERTS; e += WORKGROUP) { atomicStore(&counts[e], 0u); }
  for (var i = tid; i < u.padded; i += WORKGROUP) { order[i] = ${NONE}u; }
  workgroupBarrier();
  for (var pair = tid; pair < u.pairs; pair += WORKGROUP) { atomicAdd(&counts[expert_of(pair)], 1u); }
  workgroupBarrier();
  if (tid == 0u) {
    var tile = 0u;
    for (var e = 0u; e < EXPERTS; e++) {
      begins[e] = tile;
      tile += (atomicLoad(&counts[e]) + TILE - 1u) / TILE;
    }
    for (; tile < u.tiles; tile++) { groups[tile] = ${NONE}u; }
  }
  workgroupBarrier();
  for (var e = tid; e < EXPERTS; e += WORKGROUP) {
    let tiles = (atomicLoad(&counts[e]) + TILE - 1u) / TILE;
    for (var t = 0u; t < tiles; t++) { groups[begins[e] + t] = e; }
  }
  storageBarrier(); // order is written below, by other threads
  workgroupBarrier();
  for (var e = tid; e < EXPERTS; e += WORKGROUP) { atomicStore(&counts[e], 0u); }
  workgroupBarrier();
  for (var pair = tid; pair < u.pairs; pair += WORKGROUP) {
    let e = expert_of(pair);
    let place = begins[e] * TILE + atomicAdd(&counts[e], 1u);
    places[pair] = place;
    order[place] = pair;
  }
}`,
  cases: [
    { m: 3, experts: 8, used: 2, tile: 4 },
    { m: 100, experts: 12, used: 3, tile: 32 },
    { m: 512, experts: 128, used: 8, tile: 32 }, // Qwen3-30B-A3B
  ],
  makeCase(given, { device, random }) {
    const { m, experts, used, tile } = given, pairs = m * used;
    const tiles = groupTiles(pairs, experts, tile), padded = tiles * tile;
    const chosen = randomChoice(random, given);
    const expertOf = (pair: number) =>
      chosen.data[2 * Math.floor(pair / used) * used + pair % used];
    const counts = new Array(experts).fill(0);
    for (let pair = 0; pair < pairs; pair++) counts[expertOf(pair)]++;
    const groups = counts.flatMap((count, e): number[] =>
      new Array(Math.ceil(count / tile)).fill(e)
    );
    while (groups.length < tiles) groups.push(NONE);
    return {
      what: `${m} rows of ${used} among ${experts} experts, tiles of ${tile}`,
      operands: {
        chosen,
        groups: u32Tensor([tiles]),
        order: u32Tensor([padded]),
        places: u32Tensor([pairs]),
      },
      constants: {
        EXPERTS: experts,
        TILE: tile,
        WORKGROUP: Math.min(
          256,
          device.limits.maxComputeInvocationsPerWorkgroup,
        ),
      },
      expected: () => [
        { of: "groups", values: groups, tolerance: 0 },
        {
          // The pair at the place of each pair is itself.
          of: ({ order, places }) =>
            Array.from(places, (at) => order[at] ?? -1),
          values: Array.from({ length: pairs }, (_, pair) => pair),
          tolerance: 0,
        },
        {
          of: ({ places }) =>
            Array.from(places, (at) => groups[Math.floor(at / tile)] ?? -1),
          values: Array.from({ length: pairs }, (_, pair) => expertOf(pair)),
          tolerance: 0,
        },
        {
          of: (
            { order },
          ) => [Array.from(order).filter((p) => p === NONE).length],
          values: [padded - pairs],
          tolerance: 0,
        },
      ],
    };
  },
});
