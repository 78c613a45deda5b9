"""Every request field of OpenAI's API and of ours, and what becomes of it: the one place that knows.

`chat.py` and `completions.py` ask it what to refuse, the README prints it, and a test holds it against OpenAI's own
description. Four fates, and none of them is silence:

- honoured: it does what OpenAI says;
- extension: not OpenAI's; honoured too;
- accepted: checked, and it changes nothing here, for the reason in the note;
- neutral: only `null` and the listed values, which ask for nothing; any other value is a 400 that names the field.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from oxlo_local.errors import UnsupportedValue

Fate = Literal["honoured", "extension", "accepted", "neutral"]


@dataclass(frozen=True)
class Field:
    """One request field. `neutral` holds the values besides null that a field of that fate accepts."""

    name: str
    fate: Fate
    note: str
    neutral: tuple[object, ...] = ()

    @property
    def accepted_values(self) -> str:
        """The values that a field of fate `neutral` accepts, as JSON."""
        return ", ".join(["null", *(msgspec.json.encode(each).decode() for each in self.neutral)])

    @property
    def about(self) -> str:
        """What the README says of it."""
        return f"{self.note}; accepted: `{self.accepted_values}`" if self.fate == "neutral" else self.note


_SAMPLING = (
    Field("temperature", "honoured", "0 to 2; 0 is greedy"),
    Field("top_p", "honoured", "0 to 1"),
    Field("frequency_penalty", "honoured", "-2 to 2"),
    Field("presence_penalty", "honoured", "-2 to 2"),
    Field("logit_bias", "honoured", "token id to -100..100"),
    Field("seed", "honoured", "64-bit integer; choice i draws with seed + i"),
    Field("stop", "honoured", "a string or up to 4, none of them empty"),
    Field("n", "honoured", "1 to 128, or the server's lower `choices_max`"),
    Field("stream", "honoured", "server-sent events"),
    Field(
        "stream_options",
        "honoured",
        "`include_usage`; only with `stream`; `include_obfuscation` only at false",
    ),
)

_EXTENSIONS = (
    Field(
        "guided_json", "extension", "a JSON Schema, as an object or as text; as `response_format` json_schema"
    ),
    Field("guided_regex", "extension", "the whole answer matches it; up to 16,384 characters"),
    Field("guided_choice", "extension", "a list of strings, one of which is the answer"),
    Field("guided_grammar", "extension", "GBNF, or Lark as llguidance reads it; up to 16,384 characters"),
    Field("top_k", "extension", "0 or -1: all tokens"),
    Field("min_p", "extension", "0 to 1"),
    Field("typical_p", "extension", "0 to 1; 1 is off"),
    Field("repeat_penalty", "extension", "above 0, to 10; 1 is off"),
    Field("repetition_penalty", "extension", "another name of `repeat_penalty`"),
    Field("repeat_last_n", "extension", "tokens that the penalties look back on; -1: the whole context"),
    Field("mirostat", "extension", "0, 1 or 2"),
    Field("mirostat_mode", "extension", "another name of `mirostat`"),
    Field("mirostat_tau", "extension", "0 to 100"),
    Field("mirostat_eta", "extension", "0 to 1"),
    Field(
        "truncation",
        "extension",
        '"auto" drops the oldest turns of a long prompt; "disabled", the default, is a 400',
    ),
    Field("tfs_z", "neutral", "tail-free sampling has left llama.cpp", (1,)),
)

CHAT: tuple[Field, ...] = (
    Field("model", "honoured", "id, alias or near spelling; the answer's `model` is the id that ran"),
    Field(
        "messages",
        "honoured",
        "roles system, developer (= system), user, assistant, tool, function; text and text parts, joined by line "
        "feeds; "
        "a last assistant message is continued; `name` is shown to the model where its template has a place for it; "
        "`reasoning_content` of earlier turns likewise; media parts are a 400",
    ),
    Field("max_tokens", "honoured", "at least 1; unset: the rest of the context"),
    Field("max_completion_tokens", "honoured", "as `max_tokens`; both only if equal"),
    Field("logprobs", "honoured", "per token"),
    Field("top_logprobs", "honoured", "0 to 20, with `logprobs` true"),
    *_SAMPLING,
    Field("metadata", "honoured", "up to 16 pairs, keys 64, values 512 characters; kept in the ledger row"),
    Field("user", "accepted", "callers are told apart by their keys"),
    Field("safety_identifier", "accepted", "up to 64 characters; callers are told apart by their keys"),
    Field("prompt_cache_key", "accepted", "prefixes are reused whoever sent them"),
    Field("prompt_cache_retention", "neutral", "the prefix cache lives in memory", ("in_memory",)),
    Field("prompt_cache_options", "neutral", "prefix reuse is automatic", ({}, {"mode": "implicit"})),
    Field("store", "neutral", "answers are not kept", (False,)),
    Field("service_tier", "neutral", "there is one tier", ("auto", "default")),
    Field(
        "response_format",
        "honoured",
        "text, json_object, json_schema: enforced while the answer is written, with or without `strict`; a schema that "
        "cannot be is a 400 that names the keyword",
    ),
    Field("modalities", "neutral", "text only", (["text"],)),
    Field(
        "tools",
        "honoured",
        "functions, up to 128; with `strict` their arguments are always valid; custom tools are a 400",
    ),
    Field(
        "tool_choice",
        "honoured",
        "none, auto, required, one function, or allowed_tools; without `tools` only none and auto",
    ),
    Field("parallel_tool_calls", "honoured", "false: the answer ends with its first call"),
    Field("functions", "honoured", "the old name of `tools`; answered in the old form"),
    Field("function_call", "honoured", "the old name of `tool_choice`"),
    Field("audio", "neutral", "no spoken answers"),
    Field("prediction", "neutral", "no predicted outputs"),
    Field("web_search_options", "neutral", "nothing leaves this machine"),
    Field("moderation", "neutral", "there is no moderation model"),
    Field(
        "reasoning_effort",
        "honoured",
        "none, minimal, low, medium, high, xhigh: handed to templates that know an effort; where they only know a "
        "switch, none is off and all others are on; a 400 where they know neither",
    ),
    Field("verbosity", "neutral", "no such control in local models"),
    Field("enable_thinking", "extension", "switches thinking on or off where the template knows a switch"),
    Field("thinking_budget", "extension", "tokens, where the template knows a budget; else a 400"),
    Field(
        "reasoning_format",
        "extension",
        "split, the default: `reasoning_content`; inline: in `content`, between tags",
    ),
    Field(
        "chat_template_kwargs",
        "extension",
        "`enable_thinking`, `thinking`, `reasoning_effort`, `thinking_budget`",
    ),
    *_EXTENSIONS,
)

COMPLETIONS: tuple[Field, ...] = (
    Field("model", "honoured", "id, alias or near spelling; the answer's `model` is the id that ran"),
    Field("prompt", "honoured", "a string, strings, token ids, or lists of token ids"),
    Field("max_tokens", "honoured", "unset: 16, as OpenAI has it; 0 only with `echo`"),
    Field(
        "echo",
        "honoured",
        "with `logprobs` the prompt's tokens have theirs too; a first token without one says 0",
    ),
    Field("suffix", "honoured", "models with fill-in-the-middle tokens; others answer 400"),
    Field("logprobs", "honoured", "0 to 5"),
    Field("best_of", "honoured", "1, or equal to `n`: nothing is thrown away"),
    *_SAMPLING,
    Field("user", "accepted", "callers are told apart by their keys"),
    Field("response_format", "extension", "as in chat"),
    Field("metadata", "extension", "up to 16 pairs, keys 64, values 512 characters; kept in the ledger row"),
    *_EXTENSIONS,
)


_METADATA = Field(
    "metadata", "extension", "up to 16 pairs, keys 64, values 512 characters; kept in the ledger row"
)

EMBEDDINGS: tuple[Field, ...] = (
    Field(
        "model",
        "honoured",
        "id, alias or near spelling, of kind embedding; the answer's `model` is the id that ran",
    ),
    Field(
        "input",
        "honoured",
        "a string, strings, token ids, or lists of token ids: 1 to 2,048, none of them empty or longer than the "
        "model's context; token ids are taken as they are, without the model's own marks around them",
    ),
    Field("encoding_format", "honoured", "`float` or `base64` (little-endian float32)"),
    Field(
        "dimensions",
        "honoured",
        "models with `matryoshka` in the catalogue: the first ones, made 1 long again; others: their own number",
    ),
    Field("user", "accepted", "callers are told apart by their keys"),
    _METADATA,
)

RERANK: tuple[Field, ...] = (
    Field("model", "extension", "id, alias or near spelling, of kind rerank"),
    Field("query", "extension", "a string"),
    Field(
        "documents",
        "extension",
        "strings or objects with `text`: 1 to 2,048; with the query within the model's context",
    ),
    Field("top_n", "extension", "so many of the best; unset: all"),
    Field("return_documents", "extension", "true: each result carries its document's text"),
    Field("rank_fields", "neutral", "documents have one field, their text", (["text"],)),
    Field("max_tokens_per_doc", "neutral", "nothing is cut"),
    Field("max_chunks_per_doc", "neutral", "nothing is cut"),
    Field("truncation", "neutral", "nothing is cut", (False,)),
    Field("user", "accepted", "callers are told apart by their keys"),
    _METADATA,
)


_MODEL_OR_ONLY = Field("model", "extension", "id, alias or near spelling; unset: the only one that runs")

TOKENIZE: tuple[Field, ...] = (
    _MODEL_OR_ONLY,
    Field("content", "extension", "the text"),
    Field("add_special", "extension", "true: with the tokens that the model wants around a text"),
    Field("parse_special", "extension", "false: markers in the text are plain text"),
    Field(
        "with_pieces",
        "extension",
        "true: each token with its text, or its bytes where they are no whole character",
    ),
)

DETOKENIZE: tuple[Field, ...] = (
    _MODEL_OR_ONLY,
    Field("tokens", "extension", "token ids"),
)


def _same(value: object, neutral: object) -> bool:
    """Equality as JSON has it: 1 and 1.0 are one number, `false` and 0 are two things."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def refuse_unhonoured(body: Mapping[str, object], table: tuple[Field, ...]) -> None:
    """Raise UnsupportedValue for the first field of fate `neutral` that asks for something."""
    for field in table:
        value = body.get(field.name)
        if field.fate != "neutral" or value is None or any(_same(value, each) for each in field.neutral):
            continue
        raise UnsupportedValue(
            f"'{field.name}' is not supported with this value ({field.note}). "
            f"Leave it out, or send {field.accepted_values}.",
            param=field.name,
        )
