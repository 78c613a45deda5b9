"""Every request field of Anthropic's Messages API and of ours there, and what becomes of it."""

from oxlo_local.protocol.fields import Field

MESSAGES: tuple[Field, ...] = (
    Field("model", "honoured", "id, alias or near spelling; the answer's `model` is the id that ran"),
    Field(
        "messages",
        "honoured",
        "roles user, assistant, system; a last assistant message is continued. Blocks: text, image (base64; url "
        "as in a chat; models that see), tool_use, tool_result (an error begins with `Error: `), thinking, document "
        "and search_result as text. redacted_thinking has no effect, with a warning. PDFs, citations and blocks of "
        "server tools are a 400",
    ),
    Field("system", "honoured", "a string or text blocks, joined by line feeds"),
    Field(
        "max_tokens",
        "honoured",
        "required, but not by count_tokens; 0: the prompt is computed and cached, nothing is written",
    ),
    Field("stop_sequences", "honoured", "none of them empty, 4,096 characters together"),
    Field("temperature", "honoured", "0 to 2; 0 is greedy; unset: the model's own, else 1"),
    Field("top_p", "honoured", "0 to 1"),
    Field("top_k", "honoured", "0: all tokens"),
    Field("stream", "honoured", "server-sent events as Anthropic names them; `ping` where it is silent"),
    Field(
        "tools",
        "honoured",
        "up to 512 of type custom, with `strict`, `input_examples` (shown to the model) and `defer_loading` (until a "
        "tool_reference names it); inputs are streamed while they are written, whatever `eager_input_streaming` says; "
        "Anthropic's own types are a 400",
    ),
    Field(
        "tool_choice",
        "honoured",
        "auto, any, tool, none, with `disable_parallel_tool_use`; inputs of a call that is forced are always valid",
    ),
    Field(
        "thinking",
        "honoured",
        "enabled and adaptive let a model think that can; a thought that has spent its budget is ended, and the "
        "answer goes on; a model that does not think answers, with a warning; disabled is a 400 where the template "
        "has no switch; `display` omitted: the "
        "signature carries the thought",
    ),
    Field(
        "output_config",
        "honoured",
        "`format` json_schema, enforced; `effort` where the template knows one, else no effect, with a warning",
    ),
    Field("output_format", "honoured", "the old name of `output_config.format`"),
    Field(
        "metadata",
        "honoured",
        "`user_id` and any other pairs: up to 16, keys 64, values 512 characters; kept in the ledger row",
    ),
    Field(
        "context_management",
        "honoured",
        "clear_thinking_20251015; other edits are a 400. What was cleared is not reported",
    ),
    Field(
        "diagnostics", "honoured", "answered with the reason `unavailable`: no prompts are kept to compare"
    ),
    Field(
        "cache_control",
        "accepted",
        "at the top and in blocks: every prefix is kept and found again by itself, as long as there is memory",
    ),
    Field(
        "service_tier",
        "honoured",
        "auto: the key's own; standard_only: not priority; usage says which it was",
    ),
    Field("speed", "neutral", "there is one speed", ("standard",)),
    Field("inference_geo", "neutral", "it runs where the server is", ("global",)),
    Field("container", "neutral", "there are no containers"),
    Field("mcp_servers", "neutral", "nothing leaves this machine", ([],)),
    Field("compaction", "neutral", "conversations are not summarised"),
    Field("fallbacks", "neutral", "`fallback` in models.toml says what may take a model's place", ([],)),
    Field("fallback_credit_token", "neutral", "there are no credits"),
    Field("billing_policy", "neutral", "the caller's key pays"),
    Field("thread", "neutral", "conversations are not kept"),
    Field("seed", "extension", "64-bit integer"),
    Field("min_p", "extension", "0 to 1"),
    Field("repeat_penalty", "extension", "above 0, to 10; 1 is off"),
    Field(
        "truncation",
        "extension",
        '"auto" drops the oldest turns of a long prompt; "disabled", the default, is a 400',
    ),
)
