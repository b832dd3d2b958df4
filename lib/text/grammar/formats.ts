/**
 * Formats of strings that are offered, as patterns: what they match is right by the format's
 * standard, and common validators agree.
 *
 * @module
 */

const YEAR = "[0-9]{4}";
/** Years with a 29th of February. */
const LEAP =
  "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)";
const DATE = `(?:${YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|` +
  `(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|` +
  `${LEAP}-02-29)`;
// Without leap seconds, which are right only at the end of some days in UTC.
const CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?";
const ZONE = "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
const IPV4 = `${OCTET}(?:\\.${OCTET}){3}`;
// Shorter than DNS allows, so that no name exceeds its limit of 253 characters.
const LABEL = "[A-Za-z0-9](?:-?[A-Za-z0-9]){0,23}";
const HOST = `${LABEL}(?:\\.${LABEL}){0,4}`;
const ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}";
const PERCENT = "%[0-9A-Fa-f]{2}";
const PATH = `(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|${PERCENT})*`;
const QUERY = `(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|${PERCENT})*`;

/** IPv6 (RFC 4291): eight groups, of which :: stands for one or more. */
function ipv6(): string {
  const group = "[0-9A-Fa-f]{1,4}", end = `(?:${group}:${group}|${IPV4})`;
  const forms = [`(?:${group}:){6}${end}`];
  for (let before = 0; before <= 7; before++) {
    const left = before === 0 ? "" : `${group}(?::${group}){${before - 1}}`;
    const room = 7 - before;
    const right = room === 0 ? "" : `(?:${group}(?::${group}){0,${room - 1}})?`;
    forms.push(`${left}::${right}`);
    if (room >= 2) forms.push(`${left}::(?:${group}:){0,${room - 2}}${IPV4}`);
  }
  return forms.join("|");
}

const DURATION_TIME =
  "T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S)";
const DURATION_DATE =
  "(?:[0-9]{1,9}D|[0-9]{1,9}M(?:[0-9]{1,9}D)?|[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?)";

/** Formats of the specification that are not offered; others are annotations. */
export const REFUSED_FORMATS: ReadonlySet<string> = new Set(
  ("idn-email idn-hostname uri-reference iri iri-reference uri-template " +
    "json-pointer relative-json-pointer regex").split(" "),
);

/** The pattern of each format that is offered. */
export const FORMATS: ReadonlyMap<string, string> = new Map(
  Object.entries({
    /** RFC 3339 */
    "date": DATE,
    "time": `${CLOCK}${ZONE}`,
    "date-time": `${DATE}[Tt]${CLOCK}${ZONE}`,
    /** ISO 8601, as in RFC 3339, appendix A */
    "duration":
      `P(?:${DURATION_DATE}(?:${DURATION_TIME})?|${DURATION_TIME}|[0-9]{1,9}W)`,
    /** RFC 9562 */
    "uuid":
      "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    /** RFC 5321, with a domain of the public DNS, without quoted names */
    "email": `${ATOM}(?:\\.${ATOM}){0,2}@(?:${LABEL}\\.){1,4}[A-Za-z]{2,20}`,
    /** RFC 1123 */
    "hostname": HOST,
    /** RFC 3986, only http and https */
    "uri":
      `https?://${HOST}(?::[0-9]{1,4})?(?:/${PATH})?(?:\\?${QUERY})?(?:#${QUERY})?`,
    "ipv4": IPV4,
    "ipv6": ipv6(),
  }).map(([name, pattern]) => [name, `^(?:${pattern})$`]),
);
