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


def _fields(fate: Fate, **notes: str) -> tuple[Field, ...]:
    return tuple(Field(name, fate, note) for name, note in notes.items())


_METADATA = "up to 16 pairs, keys 64, values 512 characters; kept in the ledger row"
_MODEL = "id, alias or near spelling; the answer's `model` is the id that ran"
_USER = _fields("accepted", user="callers are told apart by their keys")

_SAMPLING = _fields(
    "honoured",
    temperature="0 to 2; 0 is greedy",
    top_p="0 to 1",
    frequency_penalty="-2 to 2",
    presence_penalty="-2 to 2",
    logit_bias="token id to -100..100",
    seed="64-bit integer; choice i draws with seed + i",
    stop="a string or up to 4, none of them empty; met in thoughts and calls too",
    n="1 to 128, or the server's lower `choices_max`",
    stream="server-sent events",
    stream_options="`include_usage`; only with `stream`; `include_obfuscation` only at false",
)

_EXTENSIONS = (
    *_fields(
        "extension",
        guided_json="a JSON Schema, as an object or as text; as `response_format` json_schema",
        guided_regex="the whole answer matches it; up to 16,384 characters",
        guided_choice="a list of strings, one of which is the answer",
        guided_grammar="GBNF, or Lark as llguidance reads it; up to 16,384 characters",
        top_k="0 or -1: all tokens",
        min_p="0 to 1",
        typical_p="0 to 1; 1 is off",
        repeat_penalty="above 0, to 10; 1 is off",
        repetition_penalty="another name of `repeat_penalty`",
        repeat_last_n="tokens that the penalties look back on; -1: the whole context",
        mirostat="0, 1 or 2",
        mirostat_mode="another name of `mirostat`",
        mirostat_tau="0 to 100",
        mirostat_eta="0 to 1",
        truncation='"auto" drops the oldest turns of a long prompt; "disabled", the default, is a 400',
    ),
    Field("tfs_z", "neutral", "tail-free sampling has left llama.cpp", (1,)),
)

CHAT: tuple[Field, ...] = (
    *_fields(
        "honoured",
        model=_MODEL,
        messages="roles system, developer (= system), user, assistant, tool, function; text and text parts, joined by "
        "line feeds; a last assistant message is continued (see `continue_final_message`); `name` is shown to the "
        "model where its template has a place for it; `reasoning_content` of earlier turns likewise; a user's "
        "`image_url` parts, as data: URI or, with `allow_remote_media`, by address, up to 64, for models that see; "
        "other media are a 400",
        max_tokens="at least 1; unset: the rest of the context",
        max_completion_tokens="as `max_tokens`; both only if equal",
        logprobs="per token",
        top_logprobs="0 to 20; above 0 only with `logprobs` true",
    ),
    *_SAMPLING,
    *_fields(
        "honoured",
        metadata=_METADATA,
        service_tier="who goes first when requests wait: priority, default or flex; auto, as if unset, is the key's "
        "own; above the key's, and scale and fast, are a 400; the answer says which it was",
        response_format="text, json_object, json_schema: enforced while the answer is written, with or without "
        "`strict`; a schema that cannot be is a 400 that names the keyword; beside `tools` the answer is such JSON, or "
        "calls",
        tools="functions, up to 128; with `strict` their arguments are always valid, and a schema that "
        "cannot be enforced, also in the model's own form of calls, is a 400; custom tools are a 400",
        tool_choice="none, auto, required, one function, or allowed_tools; without `tools` only none and auto",
        parallel_tool_calls="false: the answer ends with its first call",
        functions="the old name of `tools`; answered in the old form",
        function_call="the old name of `tool_choice`",
        reasoning_effort="none, minimal, low, medium, high, xhigh, max: handed to templates that know an effort, as "
        "the nearest that they name; where they only know a switch, none is off and all others are on; a 400 where "
        "they know neither",
        prediction="text or text parts: what repeats of it is guessed, which makes an answer faster, never another; "
        "`accepted_prediction_tokens` counts what came true of these guesses, `rejected_prediction_tokens` what did "
        "not, and costs nothing; named in `x-oxlo-warnings` where the model does not speculate",
    ),
    *_USER,
    *_fields(
        "accepted",
        safety_identifier="up to 64 characters; callers are told apart by their keys",
        prompt_cache_key="prefixes are reused whoever sent them",
    ),
    Field("prompt_cache_retention", "neutral", "the prefix cache lives in memory", ("in_memory",)),
    Field("prompt_cache_options", "neutral", "prefix reuse is automatic", ({}, {"mode": "implicit"})),
    Field("store", "neutral", "answers are not kept", (False,)),
    Field("modalities", "neutral", "text only", (["text"],)),
    Field("audio", "neutral", "no spoken answers"),
    Field("web_search_options", "neutral", "nothing leaves this machine"),
    Field("moderation", "neutral", "there is no moderation model"),
    Field("verbosity", "neutral", "no such control in local models", ("medium",)),
    *_fields(
        "extension",
        continue_final_message="true: the last message is an assistant's, and the answer goes on where it ends, which "
        "is the default then; false: the answer is a new turn",
        add_generation_prompt="the opposite of `continue_final_message`; both only if they agree",
        enable_thinking="switches thinking on or off where the template knows a switch",
        thinking_budget="tokens of thought, behind which the thought is ended and the answer goes on; also handed to "
        "templates that know a budget; a 400 where the model does not think",
        reasoning_format="split, the default: `reasoning_content`; inline: in `content`, between tags",
        chat_template_kwargs="`enable_thinking`, `thinking`, `reasoning_effort`, `thinking_budget`",
    ),
    *_EXTENSIONS,
)

COMPLETIONS: tuple[Field, ...] = (
    *_fields(
        "honoured",
        model=_MODEL,
        prompt="a string, strings, token ids, or lists of token ids",
        max_tokens="unset: 16, as OpenAI has it; 0 only with `echo`",
        echo="with `logprobs` the prompt's tokens have theirs too; a first token without one says 0",
        suffix="models with fill-in-the-middle tokens; others answer 400",
        logprobs="0 to 5",
        best_of="1, or equal to `n`: nothing is thrown away",
    ),
    *_SAMPLING,
    *_USER,
    *_fields("extension", response_format="as in chat", metadata=_METADATA),
    *_EXTENSIONS,
)

EMBEDDINGS: tuple[Field, ...] = (
    *_fields(
        "honoured",
        model="id, alias or near spelling, of kind embedding; the answer's `model` is the id that ran",
        input="a string, strings, token ids, or lists of token ids: 1 to 2,048, none of them empty or longer than the "
        "model's context; token ids are taken as they are, without the model's own marks around them",
        encoding_format="`float` or `base64` (little-endian float32)",
        dimensions="models with `matryoshka` in the catalogue: the first ones, made 1 long again; others: their own "
        "number",
    ),
    *_USER,
    *_fields("extension", metadata=_METADATA),
)

RERANK: tuple[Field, ...] = (
    *_fields(
        "extension",
        model="id, alias or near spelling, of kind rerank",
        query="a string",
        documents="strings or objects with `text`: 1 to 2,048; with the query within the model's context",
        top_n="so many of the best; unset: all",
        return_documents="true: each result carries its document's text",
    ),
    Field("rank_fields", "neutral", "documents have one field, their text", (["text"],)),
    Field("max_tokens_per_doc", "neutral", "nothing is cut"),
    Field("max_chunks_per_doc", "neutral", "nothing is cut"),
    Field("truncation", "neutral", "nothing is cut", (False,)),
    *_USER,
    *_fields("extension", metadata=_METADATA),
)

_MODEL_OR_ONLY = _fields("extension", model="id, alias or near spelling; unset: the only one that runs")

TOKENIZE: tuple[Field, ...] = (
    *_MODEL_OR_ONLY,
    *_fields(
        "extension",
        content="the text",
        add_special="true: with the tokens that the model wants around a text",
        parse_special="false: markers in the text are plain text",
        with_pieces="true: each token with its text, or its bytes where they are no whole character",
    ),
)

DETOKENIZE: tuple[Field, ...] = (*_MODEL_OR_ONLY, *_fields("extension", tokens="token ids"))


_SPEECH = _fields(
    "extension",
    hotwords="words to expect, as one text",
    vad_filter="false: every second of the file is transcribed; else only what a detector takes for speech",
    metadata=_METADATA,
)

TRANSCRIPTIONS: tuple[Field, ...] = (
    *_fields(
        "honoured",
        file="audio, or video with sound, in whatever container and codec FFmpeg reads, up to `max_upload_bytes`; its "
        "name says nothing",
        model="id, alias or near spelling, of kind speech",
        language="ISO 639-1 or an English name; auto or unset: detected",
        languages="one language, instead of `language`; more are a 400",
        prompt="what was said before, as it were: names, spelling, style; up to half of the model's text window",
        keywords="words to expect; another form of `hotwords`",
        response_format="json, text, srt, vtt, verbose_json; diarized_json is a 400: there is no model here that tells "
        "speakers apart",
        temperature="0 to 1; 0, the default: a beam search, and what fails the quality thresholds again at 0.2, 0.4 up "
        "to 1",
        timestamp_granularities="segment, word or both: in verbose_json its lists, in srt and vtt a cue a word; word "
        "is a 400 where the format has no times",
        include="logprobs, in the format json; a beam search has none, so the text is then the greedy one, as a "
        "warning says",
        chunking_strategy="auto, as if unset: cut at pauses that voice activity detection finds; or `server_vad` with "
        "`threshold`, `prefix_padding_ms` (also kept after speech) and `silence_duration_ms`",
        stream="transcript.text.delta a segment, then transcript.text.done; only with json, or with verbose_json, "
        "whose deltas have their segment and the progress in added fields",
    ),
    Field("known_speaker_names", "neutral", "no model here tells speakers apart", ([],)),
    Field("known_speaker_references", "neutral", "no model here tells speakers apart", ([],)),
    *_SPEECH,
)

TRANSLATIONS: tuple[Field, ...] = (
    *(
        field
        for field in TRANSCRIPTIONS
        if field.name in "file model prompt response_format temperature".split()
    ),
    *_fields(
        "extension",
        **{
            field.name: field.note
            for field in TRANSCRIPTIONS
            if field.name
            in "language languages keywords timestamp_granularities include chunking_strategy stream".split()
        },
    ),
    *_SPEECH,
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
