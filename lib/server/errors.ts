/**
 * Errors as OpenAI's API answers them: an HTTP status, and a body with `error.message`,
 * `type`, `param` and `code` (https://platform.openai.com/docs/guides/error-codes).
 *
 * @module
 */
import { DeviceError, errorText, OptionError } from "../errors.ts";

/** What an {@linkcode ApiError} says apart from its message. */
interface Details {
  /** The parameter that is wrong, such as `messages` or `stream_options.include_usage`. */
  param?: string;
  /** A word for programs, such as `model_not_found`. */
  code?: string;
  /** Seconds after which the request may be sent again. */
  retryAfter?: number;
  /** Methods that the path has, for status 405. */
  allow?: string;
}

/** A request that is answered with an error. */
export class ApiError extends Error {
  /** Always `ApiError`. */
  override name = "ApiError";

  constructor(
    readonly status: number,
    message: string,
    readonly details: Details = {},
  ) {
    super(message);
  }
}

/** How errors of reading a request begin. */
export const CANNOT = "Cannot read the request";

/** A parameter with a wrong value; `problem` says what it is and what it must be. */
export function wrongParameter(param: string, problem: string): ApiError {
  return new ApiError(400, `${CANNOT}: ${param} ${problem}`, { param });
}

/** A parameter that the server does not have. */
export function unsupported(param: string, instead = ""): ApiError {
  return new ApiError(
    400,
    `${CANNOT}: ${param} is not supported by this server${
      instead && `, ${instead}`
    }`,
    { param, code: "unsupported_parameter" },
  );
}

/** A field that must be there. */
export function required(name: string): ApiError {
  return new ApiError(400, `${CANNOT}: ${name} is missing, must be given`, {
    param: name,
    code: "missing_required_parameter",
  });
}

/** A request took too long. */
export function tooLate(seconds: number): ApiError {
  return new ApiError(
    504,
    `Cannot answer: the request was not complete after ${seconds} s, must be shorter`,
    { code: "timeout" },
  );
}

/** What requests call the library's options. */
const PARAMETERS: Readonly<Record<string, string>> = {
  maxTokens: "max_tokens",
  topK: "top_k",
  topP: "top_p",
  minP: "min_p",
  repetitionPenalty: "repetition_penalty",
  presencePenalty: "presence_penalty",
  frequencyPenalty: "frequency_penalty",
  logitBias: "logit_bias",
  schema: "response_format",
  ignoreEos: "ignore_eos",
  thinking: "enable_thinking",
  templateVariables: "chat_template_kwargs",
};

/** Does what fails only because of what a request holds: its errors have status 400. */
export function refusing<T>(param: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw refused(error, param);
  }
}

/** Does as {@linkcode refusing}; the parameter is at fault whatever an error names. */
export function refusingAt<T>(param: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw new ApiError(400, errorText(error), { param });
  }
}

/** An error of the library as one of the request, unless it comes from elsewhere. */
export function refused(error: unknown, param: string): unknown {
  const elsewhere = error instanceof ApiError ||
    error instanceof DeviceError || error instanceof DOMException;
  if (elsewhere || !(error instanceof Error)) return error;
  let message = errorText(error);
  if (error instanceof OptionError) {
    const { option } = error, name = PARAMETERS[option] ?? option;
    message = message.replaceAll(`: ${option} `, `: ${name} `);
    return new ApiError(400, message, { param: name });
  }
  const tooLong = /the context (of \d+ )?has room for/.test(message);
  const code = tooLong ? "context_length_exceeded" : undefined;
  return new ApiError(400, message, { param, code });
}

/** The body of an error. */
export interface ErrorBody {
  error: {
    message: string;
    type: string;
    param: string | null;
    code: string | null;
  };
}

/** Types of errors that clients tell apart. */
function typeOf(status: number): string {
  if (status === 401) return "authentication_error";
  if (status === 403) return "permission_error";
  if (status === 429) return "rate_limit_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

/** The body for an error; one that is not an {@linkcode ApiError} is the server's fault. */
export function errorBody(error: unknown): ErrorBody {
  const { status, details } = asApiError(error);
  return {
    error: {
      message: errorText(error),
      type: typeOf(status),
      param: details.param ?? null,
      code: details.code ?? null,
    },
  };
}

/** The answer to a request that failed. */
export function errorResponse(error: unknown): Response {
  const { status, details: { retryAfter, allow } } = asApiError(error);
  const headers = new Headers();
  if (retryAfter !== undefined) headers.set("retry-after", `${retryAfter}`);
  if (allow !== undefined) headers.set("allow", allow);
  if (status === 401) headers.set("www-authenticate", "Bearer");
  return Response.json(errorBody(error), { status, headers });
}

function asApiError(error: unknown): ApiError {
  return error instanceof ApiError ? error : new ApiError(500, "");
}
