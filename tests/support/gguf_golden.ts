/** Exact logits of GGUF files, from their dequantised weights. */

export interface GgufCase {
  name: string;
  input_ids: number[];
  /** `all`, or that of the last token alone. */
  positions_kept: string;
  argmax: number[];
  logits: Float32Array;
}

/** The cases of a file, with their exact logits; `golden` is its path without `.gguf`. */
export async function ggufCases(golden: string): Promise<GgufCase[]> {
  const json = JSON.parse(await Deno.readTextFile(`${golden}.json`));
  const bytes = await Deno.readFile(`${golden}.safetensors`);
  const data = 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.slice(8, data)));
  return json.cases.map((one: Omit<GgufCase, "logits">) => {
    const [begin, end] = header[`exact/${one.name}`].data_offsets;
    return {
      ...one,
      logits: new Float32Array(bytes.slice(data + begin, data + end).buffer),
    };
  });
}
