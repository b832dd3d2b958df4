import type { ProfileReport } from "./profile_report.ts";
// deno-lint-ignore require-await
export async function profileHtml(_report: ProfileReport): Promise<string> {
  return "";
}
