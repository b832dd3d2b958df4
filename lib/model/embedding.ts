/**
 * What becomes of the state after a text's last token: the text's vector, or how probable
 * it is that a reranker answers yes.
 *
 * @module
 */
import { type Checkpoint, CLASSIFIER } from "../checkpoint/checkpoint.ts";
import { storedRowBytes } from "../formats/format.ts";
import { matrixToF32, storedMatrix } from "../formats/tensor.ts";
import { familyOf } from "./families.ts";

/**
 * The first `dimensions` elements of a state (Matryoshka representation learning,
 * https://arxiv.org/abs/2205.13147), scaled to length 1 if `normalize`.
 *
 * @param which names the text in errors
 * @throws {Error} if an element is not finite.
 */
export function vectorOf(
  state: Float32Array,
  dimensions: number,
  normalize: boolean,
  which: string,
): Float32Array {
  const vector = state.slice(0, dimensions);
  requireFinite("embed", vector, which);
  if (!normalize) return vector;
  let squares = 0;
  for (const value of vector) squares += value * value;
  const length = Math.sqrt(squares);
  return length > 0 ? vector.map((value) => value / length) : vector;
}

function requireFinite(
  action: string,
  state: Float32Array,
  which: string,
): void {
  const wrong = state.findIndex((value) => !Number.isFinite(value));
  if (wrong < 0) return;
  throw new Error(
    `Cannot ${action}: element ${wrong} of the state of ${which} is ${
      state[wrong]
    }, so the weights or the device are faulty`,
  );
}

/** The rows of the LM head for yes and no, `[hidden]` each. */
export interface Answers {
  yes: Float32Array;
  no: Float32Array;
}

/**
 * Reads the rows of the LM head for the answers of a reranker. Some files have only these
 * rows, in a tensor of their own.
 *
 * @param ids the tokens of the answers
 */
export async function readAnswers(
  checkpoint: Checkpoint,
  ids: () => { yes: number; no: number },
): Promise<Answers> {
  const { config, tensors } = checkpoint;
  const own = tensors.has(CLASSIFIER);
  const { yes, no } = own ? { yes: 0, no: 1 } : ids();
  const head = familyOf(config).weights(config).lmHead.tensors[0];
  const name = own ? CLASSIFIER : head.name;
  const { format } = tensors.get(name)!, k = config.hiddenSize;
  const row = async (index: number) => {
    const stored = new Uint8Array(storedRowBytes(format, k));
    await checkpoint.read(name, index * stored.length, stored);
    return matrixToF32(storedMatrix(format, stored, k));
  };
  return { yes: await row(yes), no: await row(no) };
}

/**
 * How probable yes is, of yes and no, after a state: softmax over their logits.
 *
 * @param which names the document in errors
 * @throws {Error} if an element of the state is not finite.
 */
export function yesProbability(
  state: Float32Array,
  { yes, no }: Answers,
  which: string,
): number {
  requireFinite("rerank", state, which);
  let ahead = 0; // the logit of yes, less that of no
  for (let i = 0; i < state.length; i++) ahead += state[i] * (yes[i] - no[i]);
  return 1 / (1 + Math.exp(-ahead));
}
