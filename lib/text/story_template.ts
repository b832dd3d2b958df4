/**
 * A chat template for models that only continue stories, such as the embedded one: two
 * people tell a story in turn.
 *
 * @module
 */

/**
 * Makes one story of a conversation. The assistant continues what the user wrote, right
 * after its last character, so a reply usually begins with a space. Each message of the user
 * begins a paragraph, and so does a reply that follows no message of the user. The words of
 * the system come first, as the beginning of the story.
 *
 * There is no place for functions or reasoning, which are refused.
 */
export const STORY_TEMPLATE: string = `{{- bos_token -}}
{%- for message in messages -%}
  {%- set continues = message.role == "assistant" and not loop.first
    and messages[loop.index0 - 1].role == "user" -%}
  {%- if not loop.first and not continues -%}{{- "\\n\\n" -}}{%- endif -%}
  {%- if message.role == "assistant" -%}{{- message.content -}}
  {%- elif message.role in ["system", "user"] -%}{{- message.content | trim -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != "user" -%}{{- "\\n\\n" -}}{%- endif -%}`;
