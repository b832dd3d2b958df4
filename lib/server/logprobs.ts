/**
 * Log probabilities of tokens, as completions of chats and of texts have them.
 *
 * @module
 */
import type { Piece } from "../generate.ts";
import type { Qwen3 } from "../load.ts";

/** A piece that came with its token and its log probabilities. */
type Scored = Piece & {
  tokenId: number;
  logprobs: NonNullable<Piece["logprobs"]>;
};

/** The pieces of a text with log probabilities; a special token that ends it has no place in it. */
function scored(pieces: readonly Piece[], qwen: Qwen3): Scored[] {
  const special = qwen.hasTokenizer ? qwen.tokenizer.specialIds : new Set();
  return pieces.filter((piece): piece is Scored =>
    piece.kind === "text" && piece.tokenId !== null &&
    piece.logprobs !== undefined && !special.has(piece.tokenId)
  );
}

/** The text of a token; its id if there is no tokenizer. */
function textOf(tokenId: number, qwen: Qwen3): string {
  return qwen.hasTokenizer
    ? qwen.tokenizer.decode([tokenId])
    : `token_id:${tokenId}`;
}

function describe(tokenId: number, logprob: number, qwen: Qwen3) {
  return {
    token: textOf(tokenId, qwen),
    logprob,
    bytes: qwen.hasTokenizer ? [...qwen.tokenizer.bytes(tokenId)] : null,
  };
}

/** `logprobs.content` of a chat: of the reply's text, without reasoning and calls. */
export function chatLogprobs(pieces: readonly Piece[], qwen: Qwen3) {
  return scored(pieces, qwen).map(({ tokenId, logprobs }) => ({
    ...describe(tokenId, logprobs.logprob, qwen),
    top_logprobs: logprobs.top.map((one) =>
      describe(one.tokenId, one.logprob, qwen)
    ),
  }));
}

/** `logprobs` of the chunks of a text, whose tokens have places in it. */
export class TextLogprobs {
  #offset = 0;

  constructor(readonly qwen: Qwen3) {}

  of(pieces: readonly Piece[]) {
    const { qwen } = this, tokens = scored(pieces, qwen);
    const text = (tokenId: number) => textOf(tokenId, qwen);
    return {
      tokens: tokens.map(({ tokenId }) => text(tokenId)),
      token_logprobs: tokens.map(({ logprobs }) => logprobs.logprob),
      top_logprobs: tokens.map(({ logprobs }) =>
        Object.fromEntries(
          logprobs.top.map(({ tokenId, logprob }) => [text(tokenId), logprob]),
        )
      ),
      text_offset: tokens.map(({ tokenId }) => {
        const offset = this.#offset;
        this.#offset += text(tokenId).length;
        return offset;
      }),
    };
  }
}
