"""Calls of text, vectors and scores, and the events that answer them. Structs only; imports nothing of ours."""

from typing import Literal

from msgspec import Struct, field

FinishReason = Literal["stop", "length", "tool_calls"]


# -- calls ------------------------------------------------------------------------------------------------------------


class Sampling(Struct, frozen=True, omit_defaults=True):
    """How a token is chosen. Every default is the neutral value: it changes nothing."""

    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = all
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # tokens that the penalties look back on; -1 = the whole context
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None  # choice i draws with seed + i; None = a fresh one
    logit_bias: dict[int, float] = field(default_factory=dict)  # token id -> added logit, -100 bans


class Tool(Struct, frozen=True, omit_defaults=True):
    """A function that the model may call. `parameters` is the JSON Schema of its arguments, as text."""

    name: str
    parameters: str = '{"type":"object","properties":{}}'
    description: str | None = None
    strict: bool = False  # its arguments are always valid


class ToolCall(Struct, frozen=True):
    """A call of an earlier turn. `arguments` is a JSON object, as text."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation, as the chat template sees it.

    Role `tool` answers the call `tool_call_id` of an assistant turn before it.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None
    reasoning: str | None = None


class Picture(Struct, frozen=True, omit_defaults=True):
    """An image of a conversation. `mark` stands for it in the text of its turn; nobody else can have written it.

    `url` is a data: URI or an address; `low` asks for little detail; `param` is the field that errors name.
    """

    mark: str
    url: str
    param: str
    low: bool = False


class Thinking(Struct, frozen=True, omit_defaults=True):
    """What a client wants of a model's thinking; None = as the template has it, a 400 where it knows no such thing."""

    effort: str | None = None  # "none" switches it off
    enabled: bool | None = None
    budget: int | None = None  # tokens
    inline: bool = False  # leave it in the text, between <think> tags


class Constraint(Struct, frozen=True, omit_defaults=True):
    """What an answer has to be, from first token to last. The worker compiles it; `param` is the field it is from.

    `kind` says what `text` is: a JSON Schema, a regular expression (the whole answer matches it), or a grammar, in
    GBNF where it has `::=`, else in Lark as llguidance reads it (`%json {...}` embeds a schema).
    """

    kind: Literal["json_schema", "regex", "grammar"]
    text: str
    param: str


class TextCall(Struct, frozen=True, omit_defaults=True, tag="text"):
    """A chat (`messages`) or a completion (`prompts`); exactly one of the two is set.

    Choice index of prompt p and sample j is `p * n + j`.
    """

    id: str
    messages: list[Message] | None = None
    new_turn: bool = False  # also after an assistant's message, which is continued otherwise
    prompts: list[str | list[int]] | None = None
    suffix: str | None = None  # fill-in-the-middle, for models that have the tokens for it
    sampling: Sampling = Sampling()
    max_tokens: int | None = None  # None = the rest of the context
    stop: list[str] = field(default_factory=list)
    n: int = 1
    logprobs: int | None = None  # None = off, k = the chosen token's and the k likeliest
    echo: bool = False  # completions: the prompt's text first
    truncate: bool = False  # drop the oldest turns (or the prompt's head) instead of refusing
    constraint: Constraint | None = None
    tools: list[Tool] = field(
        default_factory=list
    )  # the model is told of them unless `tool_choice` is "none"
    tool_choice: Literal["auto", "none", "required"] = "auto"
    parallel_tool_calls: bool = True  # False: the answer ends with its first call
    thinking: Thinking = Thinking()
    pictures: list[Picture] = field(default_factory=list)
    prediction: str = ""  # what the client thinks that the answer will be; it can only make it faster


class EmbedCall(Struct, frozen=True, omit_defaults=True, tag="embed"):
    """Texts or token lists that become vectors of length 1, each answered by a `Vector`."""

    id: str
    inputs: list[str | list[int]]
    dimensions: int | None = None  # keep only so many, and normalise again; None = all


class RerankCall(Struct, frozen=True, omit_defaults=True, tag="rerank"):
    """Documents to be judged by how well they answer a query, each answered by a `Score`."""

    id: str
    query: str
    documents: list[str]


class TokenizeCall(Struct, frozen=True, omit_defaults=True, tag="tokenize"):
    """Answered by `Tokens`. Needs no slot, and neither do the next two."""

    id: str
    text: str
    add_special: bool = False  # the tokens that the model wants around a text (BOS, CLS, ...)
    parse_special: bool = True  # markers in the text are read as the control tokens they name


class DetokenizeCall(Struct, frozen=True, omit_defaults=True, tag="detokenize"):
    """Answered by one `Text`."""

    id: str
    tokens: list[int]


class PromptCall(Struct, frozen=True, omit_defaults=True, tag="prompt"):
    """What would the model be given for this call? Answered by one `Text`."""

    id: str
    call: TextCall


class CountCall(Struct, frozen=True, omit_defaults=True, tag="count"):
    """How many tokens would the model be given for this call? Answered by `Done` alone, whose usage says it."""

    id: str
    call: TextCall


TokenCall = TokenizeCall | DetokenizeCall | PromptCall | CountCall


# -- events -----------------------------------------------------------------------------------------------------------


class TopLogprob(Struct, frozen=True, array_like=True):
    """A candidate token: its text (U+FFFD where it is no whole character), its bytes, ln(probability)."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Struct, frozen=True, array_like=True):
    """The token that was chosen, and the likeliest ones beside it. `logprob` is None for an echoed first token."""

    token: str
    bytes: list[int]
    logprob: float | None
    top: list[TopLogprob]


class Text(Struct, frozen=True, tag="text", array_like=True):
    """Text of one choice: whole characters only, never part of a stop string. `tokens` = how many it took."""

    id: str
    choice: int
    text: str
    tokens: int
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Reasoning(Struct, frozen=True, tag="reasoning", array_like=True):
    """A piece of what one choice thinks before it answers."""

    id: str
    choice: int
    text: str
    tokens: int


class CallBegun(Struct, frozen=True, tag="call", array_like=True):
    """Tool call `index` of a choice begins; its arguments follow in pieces."""

    id: str
    choice: int
    index: int
    call_id: str
    name: str
    tokens: int


class CallArguments(Struct, frozen=True, tag="arguments", array_like=True):
    """A piece of a tool call's arguments: JSON text."""

    id: str
    choice: int
    index: int
    text: str
    tokens: int


class CallBroken(Struct, frozen=True, tag="broken", array_like=True):
    """What looked like a tool call is none: `text`, all of it, is content. `index` is None where it had not begun."""

    id: str
    choice: int
    index: int | None
    text: str
    tokens: int


class Finished(Struct, frozen=True, tag="finished", array_like=True):
    """One choice is complete. `stop` is the stop string that ended it, None where none did."""

    id: str
    choice: int
    reason: FinishReason
    stop: str | None = None


class Vector(Struct, frozen=True, tag="vector", array_like=True):
    """One input's embedding: little-endian float32 numbers, their length 1."""

    id: str
    index: int
    data: bytes


class Score(Struct, frozen=True, tag="score", array_like=True):
    """One document's relevance: 0 to 1, more is better, where the model gives a logit or a probability."""

    id: str
    index: int
    relevance: float


class Tokens(Struct, frozen=True, tag="tokens", array_like=True):
    """The tokens of a text, and the bytes that each stands for."""

    id: str
    tokens: list[int]
    pieces: list[bytes]


Output = Text | Reasoning | CallBegun | CallArguments | CallBroken
