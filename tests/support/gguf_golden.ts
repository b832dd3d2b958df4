/** Exact logits and vectors of GGUF files, from their dequantised weights. */

export interface GgufCase {
  name: string;
  input_ids: number[];
  /** `all`, or that of the last token alone. */
  positions_kept: string;
  argmax: number[];
  exact: Float32Array;
}

/**
 * The cases of a file, with exact values of one kind, such as logits; `golden` is its path
 * without `.gguf`.
 */
export async function ggufCases(
  golden: string,
  kind = "exact",
): Promise<GgufCase[]> {
  const json = JSON.parse(await Deno.readTextFile(`${golden}.json`));
  const bytes = await Deno.readFile(`${golden}.safetensors`);
  const data = 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.slice(8, data)));
  return json.cases.map((one: Omit<GgufCase, "exact">) => {
    const [begin, end] = header[`${kind}/${one.name}`].data_offsets;
    return {
      ...one,
      exact: new Float32Array(bytes.slice(data + begin, data + end).buffer),
    };
  });
}
