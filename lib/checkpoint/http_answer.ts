/**
 * What a server's answer says about a file: its version, its range and its length.
 *
 * @module
 */

/** What identifies the content that a server sends for one URL. */
export interface Version {
  /** In bytes. */
  size?: number;
  etag?: string;
  modified?: string;
}

/** Whether a response is about the known version; some servers ignore conditions. */
export function isKnown(
  response: Response,
  known: Version,
  now: Version,
): boolean {
  if (response.status === 304) return true;
  const tagged = known.etag !== undefined && now.etag !== undefined;
  const dated = known.modified !== undefined && now.modified !== undefined;
  return (tagged || dated) && difference(known, now) === undefined;
}

/**
 * The value of If-Range that makes a server send a changed file whole instead of its
 * rest; undefined if no version is certain to have the same bytes (RFC 9110, 13.1.5).
 */
export function resumeCondition(
  { etag, modified }: Version,
): string | undefined {
  return etag === undefined
    ? modified
    : etag.startsWith("W/")
    ? undefined
    : etag;
}

/** The size and range in Content-Range, as `0-9`; empty if it has another form. */
export function contentRange(
  { headers }: Response,
): { range: string; size?: number } {
  const text = headers.get("content-range") ?? "";
  const [, range, size] =
    /^bytes (\d+-\d+|\*)\/(?:(\d+)|\*)$/i.exec(text.trim()) ??
      [];
  return { range: range ?? "", size: size ? Number(size) : undefined };
}

export function versionOf(response: Response, size?: number): Version {
  const { status, headers } = response;
  const whole = status === 200 && encodingOf(response) === undefined;
  return {
    size: size ?? (whole ? lengthOf(response) : undefined),
    etag: headers.get("etag") || undefined,
    modified: headers.get("last-modified") || undefined,
  };
}

/** What distinguishes two versions of a file, as far as both say. */
export function difference(before: Version, now: Version): string | undefined {
  const differs = <T>(a: T | undefined, b: T | undefined) =>
    a !== undefined && b !== undefined && a !== b;
  const strong = (tag?: string) => tag?.replace(/^W\//, "");
  const changes: string[] = [];
  if (differs(before.size, now.size)) {
    changes.push(`its size was ${before.size} bytes and is ${now.size}`);
  }
  if (differs(strong(before.etag), strong(now.etag))) {
    changes.push(`its ETag was ${before.etag} and is ${now.etag}`);
  }
  // With tags, times add nothing: copies of a file may have other times.
  const tagged = before.etag !== undefined && now.etag !== undefined;
  if (!tagged && differs(before.modified, now.modified)) {
    changes.push(
      `its Last-Modified was ${before.modified} and is ${now.modified}`,
    );
  }
  return changes.length > 0 ? changes.join(", ") : undefined;
}

/** A response in a few words, for errors. */
export function described(response: Response): string {
  const { status, headers } = response;
  if (status === 200) return "the whole file";
  if (status !== 206) return statusOf(response);
  const encoding = encodingOf(response);
  const range = headers.get("content-range") ?? headers.get("content-type") ??
    "206 without Content-Range";
  return encoding === undefined
    ? range
    : `${range} with Content-Encoding ${encoding}`;
}

export function statusOf({ status, statusText }: Response): string {
  return `${status} ${statusText}`.trim();
}

export function encodingOf({ headers }: Response): string | undefined {
  const encoding = headers.get("content-encoding")?.trim().toLowerCase();
  return encoding === "" || encoding === "identity" ? undefined : encoding;
}

export function lengthOf({ headers }: Response): number | undefined {
  const length = headers.get("content-length");
  return length === null ? undefined : Number(length);
}
