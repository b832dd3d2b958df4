/**
 * `/v1/embeddings`: vectors of texts.
 *
 * @module
 */
import { encodeToEmbedInParts, type Text } from "../text/embedding.ts";
import { refused, required, tooLate } from "./errors.ts";
import { Fields } from "./fields.ts";
import { asTokenIds, checkModel } from "./parameters.ts";
import { inTurns } from "./rests.ts";
import { type Call, sourceOf } from "./service.ts";

/** The most texts of a request, as in OpenAI's API. */
const MOST_TEXTS = 2048;

/** Answers a request. */
export async function embed(
  { service, body, signal: gone }: Call,
): Promise<Response> {
  const fields = new Fields(body);
  checkModel(fields, service);
  const texts = readInput(fields);
  const format = fields.oneOf("encoding_format", ["float", "base64"]);
  const dimensions = fields.whole("dimensions", 1);
  fields.ignore(["user"]);
  fields.end();
  const source = sourceOf(service);
  const [place] = service.queue.take(1);
  using _place = place;
  const [alone] = service.embedding.take(1);
  using _alone = alone;
  const late = new AbortController(), { seconds } = service;
  const signal = AbortSignal.any([gone, late.signal]);
  const timer = setTimeout(() => late.abort(tooLate(seconds)), 1000 * seconds);
  let tokens = 0, vectors: Float32Array[];
  try {
    const ids: number[][] = [];
    for (const [i, text] of texts.entries()) {
      const which = `text ${i}`;
      const parts = encodeToEmbedInParts(text, which, undefined, source);
      const one = await inTurns("input", parts, signal);
      tokens += one.length;
      ids.push(one);
    }
    await place.turn(signal);
    await alone.turn(signal);
    vectors = await service.qwen.embed(ids, { dimensions, signal });
  } catch (error) {
    throw refused(error, "input");
  } finally {
    clearTimeout(timer);
  }
  return Response.json({
    object: "list",
    data: vectors.map((vector, index) => ({
      object: "embedding",
      index,
      embedding: format === "base64" ? base64(vector) : shortest(vector),
    })),
    model: service.names[0],
    usage: { prompt_tokens: tokens, total_tokens: tokens },
  });
}

function readInput(fields: Fields): Text[] {
  const input = fields.get("input");
  if (input === undefined) throw required("input");
  if (typeof input === "string") return [input];
  const ids = asTokenIds(input);
  if (ids) return [ids];
  const list = Array.isArray(input) && input.length <= MOST_TEXTS
    ? input.map((one) => typeof one === "string" ? one : asTokenIds(one))
    : [];
  if (list.length > 0 && list.every((one) => one !== undefined)) return list;
  throw fields.wrong(
    "input",
    `a string, token ids, or a list of 1 to ${MOST_TEXTS} of either`,
  );
}

/** The elements with the digits that an f32 has. */
function shortest(vector: Float32Array): number[] {
  return Array.from(vector, (value) => Number(value.toPrecision(9)));
}

/** The elements as little-endian f32. */
function base64(vector: Float32Array): string {
  const view = new DataView(new ArrayBuffer(4 * vector.length));
  vector.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return new Uint8Array(view.buffer).toBase64();
}
