/**
 * Streams of completions: a chunk for each piece of a text, one for its end, and `[DONE]`.
 *
 * @module
 */
import type { Piece } from "../generate.ts";
import { ApiError, errorBody } from "./errors.ts";
import type { Generation } from "./generation.ts";
import type { Delivery } from "./parameters.ts";
import type { Call } from "./service.ts";
import { EventStream } from "./sse.ts";
import { usageOf } from "./usage.ts";

/** Milliseconds in which a failure still decides the status of the response. */
export const UNDECIDED_MS = 5000;

/** Fields of a choice in a chunk. */
export type ChoiceFields = Record<string, unknown>;

/** How the chunks of a kind of completion look. */
export interface Shape {
  /** The fields that every chunk has, and further ones of the first. */
  head: Record<string, unknown>;
  first?: Record<string, unknown>;
  delivery: Delivery;
  /** The chunk before the first piece of a text, if there is one. */
  open(index: number): ChoiceFields | undefined;
  /** The chunks of a piece. */
  write(index: number, piece: Piece): ChoiceFields[];
  /** A chunk without text. */
  empty: ChoiceFields;
  /** The log probabilities of some pieces of a text, if they are asked for. */
  logprobs?: (index: number, pieces: readonly Piece[]) => unknown;
}

/** Aborts the work for a client that does not read its reply. */
export const GONE: ApiError = new ApiError(
  499,
  "Cannot send the reply: the client has gone",
);

/**
 * Streams a generation.
 *
 * @throws the error of a generation that fails soon, so that it still has a status
 */
export async function streamed(
  { service }: Call,
  generation: Generation,
  shape: Shape,
): Promise<Response> {
  await generation.begun(UNDECIDED_MS);
  const events = new EventStream(
    () => generation.abort(GONE),
    service.writeMs,
  );
  send(events, generation, shape).catch((error) => {
    generation.abort(error);
    events.send(JSON.stringify(errorBody(error)));
  }).finally(() => events.close());
  return events.response;
}

async function send(
  events: EventStream,
  generation: Generation,
  { head, first, delivery, open, write, empty, logprobs }: Shape,
): Promise<void> {
  const begin = (fields: object) =>
    JSON.stringify(fields).slice(0, -1) + ',"choices":[';
  const usual = begin(head);
  let before = begin({ ...head, ...first });
  const after = delivery.usage ? '],"usage":null}' : "]}";
  /** Pieces whose tokens no chunk has had yet, by text. */
  const held: Piece[][] = generation.runs.map(() => []);
  const chunk = (
    index: number,
    fields: ChoiceFields,
    finish: string | null = null,
  ) => {
    const pieces = held[index].splice(0);
    const choice = {
      index,
      ...fields,
      logprobs: pieces.length > 0 ? logprobs?.(index, pieces) ?? null : null,
      finish_reason: finish,
      ...(delivery.tokenIds && {
        token_ids: pieces.map(({ tokenId }) => tokenId),
      }),
    };
    events.send(before + JSON.stringify(choice) + after);
    before = usual;
  };
  for (const index of generation.runs.keys()) {
    const fields = open(index);
    if (fields) chunk(index, fields);
  }
  for await (const step of generation) {
    const { index } = step;
    if ("finish" in step) {
      chunk(index, empty, step.finish);
      continue;
    }
    const { piece } = step;
    if (piece.tokenId !== null) held[index].push(piece);
    for (const fields of write(index, piece)) chunk(index, fields);
  }
  if (delivery.usage) {
    const usage = usageOf(generation.counts);
    events.send(JSON.stringify({ ...head, choices: [], usage }));
  }
  events.send("[DONE]");
}
