/**
 * Replies in one piece.
 *
 * @module
 */
import type { Generation } from "./generation.ts";
import type { Call } from "./service.ts";
import { GONE, UNDECIDED_MS } from "./streamed.ts";

/**
 * Answers with a reply once it is whole.
 *
 * Deno notices that the sender of a large body has gone only while an answer is on its way.
 * To such requests the headers go out early; if the generation fails after them, the
 * connection breaks.
 *
 * @param reply waits for the generation
 * @throws the error of a generation that fails soon, or of any that fails if the body was
 * small, so that it has a status
 */
export async function answerWhole(
  { large }: Pick<Call, "large">,
  generation: Generation,
  reply: () => Promise<object>,
): Promise<Response> {
  if (!large) return Response.json(await reply());
  await generation.begun(UNDECIDED_MS);
  const json = reply().then((value) => JSON.stringify(value));
  json.catch(() => {}); // reported when it is read
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      controller.enqueue(new TextEncoder().encode(await json));
      controller.close();
    },
    cancel: () => generation.abort(GONE),
  });
  const headers = { "content-type": "application/json" };
  return new Response(body, { headers });
}
