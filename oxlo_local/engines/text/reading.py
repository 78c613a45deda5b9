"""From a call to token lists: template, tokenise, check against the vocabulary and the context.

May run beside a decode, on a thread of its own: it reads the model's vocabulary and nothing else.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from oxlo_local.calls import Constraint, Message, TextCall
from oxlo_local.engines.text.channels import Channels
from oxlo_local.engines.text.conversation import truncate, weight
from oxlo_local.engines.text.forced import Content, Wanted, frame
from oxlo_local.engines.text.grammar import Frame
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.prompt import ChatTemplate
from oxlo_local.engines.text.runs import splice
from oxlo_local.engines.text.sight import Image, Sight, View
from oxlo_local.engines.text.thinking import WISHES, may_think, opened, switches
from oxlo_local.engines.text.toolcalls.harmony import END, HARMONY
from oxlo_local.errors import BadRequest, ContextLengthExceeded, UnsupportedValue

COUNTED = 1 << 20  # characters that are counted even if they cannot fit, in about a second
MEDIA = "<__media__>"  # what llama-server shows in the place of an image
TURN = 64  # characters that the rendering of an empty turn is worth


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a call: its token ids, at least one and fewer than the context; its text, for echo.

    `channels` makes what takes a chat's answer apart, None where there is nothing to take apart.
    """

    tokens: list[int]
    text: str
    channels: Callable[[], Channels] | None = None
    images: list[View] = field(default_factory=list)


class Reader:
    """Reads calls for one model. `chats` says whether there is a chat template; without `sight` it takes no images."""

    def __init__(self, llama: Llama, sight: Sight | None = None) -> None:
        self._llama = llama
        self._sight = sight
        source = llama.options.chat_template or llama.chat_template
        self._bos = llama.token_text(llama.bos) if llama.bos >= 0 else ""
        eos = llama.token_text(llama.eos) if llama.eos >= 0 else ""
        self._template = ChatTemplate(source, bos_token=self._bos, eos_token=eos) if source else None
        self.chats = self._template is not None
        self.thinks = self._template is not None and self._template.thinks
        self.thinking_knows = sorted(WISHES & self._template.knows) if self._template else []
        self.closing = self._closing_tokens()
        """Tokens that end a thought; none where the model does not think."""
        self.markers = self._marker_tokens()
        """Control tokens that divide an answer, which have no text otherwise: token id -> marker, in bytes."""

    def _closing_tokens(self) -> list[int]:
        if self._template is None or not self._template.thinks:
            return []
        thoughts = self._template.thoughts
        end = END if thoughts is None else thoughts.closes
        return self._llama.tokenize(end, special=True, add_special=False)

    def _marker_tokens(self) -> dict[int, bytes]:
        template = self._template
        if template is None:
            return {}
        format, thoughts = template.format, template.thoughts
        texts = [*format.begins, *format.marks, *format.silent]
        texts += [thoughts.opens, thoughts.closes] if thoughts else []
        tokens = {t for text in texts for t in self._llama.tokenize(text, special=True, add_special=False)}
        silent = {token for token in tokens if not self._llama.piece(token)} - {self._llama.bos}
        return {token: self._llama.token_text(token).encode() for token in silent}

    @staticmethod
    def size(call: TextCall) -> int:
        """Characters (or tokens) of prompt in a call; a turn counts as some, for the template's work on it."""
        chat = sum(TURN + weight(message) for message in call.messages or ())
        chat += sum(TURN + len(tool.parameters) + len(tool.description or "") for tool in call.tools)
        return chat + sum(map(len, call.prompts or ())) + len(call.suffix or "") + len(call.prediction)

    def read(self, call: TextCall) -> list[Prompt]:
        """The prompts of a call. Raises OxloError for what the model cannot take."""
        biases = call.sampling.logit_bias
        self._llama.check_tokens(list(biases), param="logit_bias")
        if len(biases) == self._llama.n_vocab and max(biases.values()) <= -100:
            raise BadRequest("'logit_bias' bans every token of this model", param="logit_bias")
        if call.messages is not None:
            return [self._chat(call, call.messages)]
        return [self._completion(call, prompt) for prompt in call.prompts or ()]

    def prediction(self, call: TextCall) -> list[int]:
        """What the client thinks that the answer will be; none where nothing would be made of it."""
        llama = self._llama
        if not call.prediction or llama.options.speculation == "none":
            return []
        text = call.prediction[: llama.context_length * llama.longest_piece]
        return llama.tokenize(text, special=False, add_special=False)[: llama.context_length]

    def prompt_of(self, call: TextCall) -> str:
        """What the model is given for a chat, as text, however long. Raises OxloError for what it cannot take."""
        self._require_template()
        text = self._render(call, call.messages or ())
        for picture in call.pictures:
            text = text.replace(picture.mark, MEDIA)
        return text

    def count(self, call: TextCall) -> int:
        """Tokens that the model is given for a chat, however many. Raises OxloError for what it cannot take."""
        self._require_template()
        images = self._images(call)
        text = self._render(call, call.messages or ())
        if len(text) > COUNTED:
            self._bound(text, param="messages")
        return len(self._spliced(text, images)[0])

    def _require_template(self) -> None:
        if self._template is None:
            raise UnsupportedValue(
                "this model has no chat template; use /v1/completions, or give it one in models.toml "
                "([models.NAME.options] chat_template)",
                param="messages",
            )

    # -- chat ---------------------------------------------------------------------------------------------------------

    def _chat(self, call: TextCall, messages: Sequence[Message]) -> Prompt:
        self._require_template()
        images = self._images(call)
        if call.truncate:
            fitting = truncate(messages, lambda some: self._fits(call, self._render(call, some), images))
            messages = messages if fitting is None else fitting
        text = self._render(call, messages)
        channels = self._channels(call, text)
        if not images:
            return Prompt(self._tokens(text, param="messages"), text, channels)
        said = "".join(message.content for message in messages)
        lost = next((p for p in call.pictures if p.mark in said and p.mark not in text), None)
        if lost is not None:
            raise UnsupportedValue("this model's chat template leaves the image out", param=lost.param)
        tokens, views = self._spliced(text, images)
        return Prompt(self._checked(tokens, param="messages"), text, channels, views)

    def _images(self, call: TextCall) -> dict[str, Image]:
        """The images of a call, by mark. Raises OxloError for what is none, and where the model does not see."""
        if not call.pictures:
            return {}
        if self._sight is None:
            raise UnsupportedValue(
                "this model cannot see images: send text, or ask one that /v1/models says has `vision`",
                param=call.pictures[0].param,
            )
        return self._sight.read(call.pictures)

    def _spliced(self, text: str, images: Mapping[str, Image]) -> tuple[list[int], list[View]]:
        """A text with its images as tokens. Each piece of text is tokenised by itself, as libmtmd does it."""
        llama = self._llama
        if not images:
            return llama.tokenize(text, special=True, add_special=True), []
        tokens, placed = splice(
            text,
            {mark: image.look for mark, image in images.items()},
            lambda plain: llama.tokenize(plain, special=True, add_special=False),
            begins=[llama.bos] if llama.adds_bos else [],
        )
        return tokens, [View(each.start, each.seen, images[mark]) for mark, each in placed]

    def _channels(self, call: TextCall, text: str) -> Callable[[], Channels] | None:
        assert self._template is not None
        format, thoughts = self._template.format, self._template.thoughts
        tools = {} if call.tool_choice == "none" else {tool.name: tool.parameters for tool in call.tools}
        if not tools and thoughts is None and format is not HARMONY:
            return None
        is_open = thoughts is not None and opened(text, thoughts)
        is_resumed = resumes(call)
        return lambda: Channels(
            format,
            thoughts,
            tools=tools,
            new_id=short_id if format.short_ids else long_id,
            opened=is_open,
            resumed=is_resumed,
            inline=call.thinking.inline,
            parallel=call.parallel_tool_calls,
        )

    def wanted(self, call: TextCall, text: str) -> Constraint | Frame | None:
        """What the answer of a call has to be, whose prompt is `text`: what its client says, or calls where they are
        required or strict; after what the model thinks.

        Raises UnsupportedValue (param "tools") for a schema that the model's calls cannot be held to.
        """
        template = self._template
        forced = call.tool_choice == "required"
        may_call = bool(call.tools) and call.tool_choice != "none"
        strict = may_call and any(tool.strict for tool in call.tools)
        if template is None or call.messages is None or not (forced or strict or call.constraint):
            return call.constraint
        format, resumed = template.format, resumes(call)
        tools = {tool.name: tool.parameters if forced or tool.strict else None for tool in call.tools}
        grammar = format.writing.beside if call.constraint else format.writing.grammar
        calls = grammar(tools, parallel=call.parallel_tool_calls) if may_call else None
        thought = None if resumed or call.thinking.enabled is False else may_think(text, template.thoughts)
        if calls is None and thought is None and (resumed or not format.notes):
            return call.constraint
        content: Content = None if forced else call.constraint or "text"
        tokens = {marker.decode(): token for token, marker in self.markers.items()}
        return frame(Wanted(format, content, calls, thought, resumed), tokens)

    def _render(self, call: TextCall, messages: Sequence[Message]) -> str:
        template = self._template
        assert template is not None
        text = template.render(
            messages,
            tools=() if call.tool_choice == "none" else call.tools,
            switches=switches(call.thinking, template.knows, thinks=self.thinks, efforts=template.efforts),
            new_turn=call.new_turn,
        )
        # A template that writes BOS itself and a vocabulary that adds it would give the model two.
        return text.removeprefix(self._bos) if self._bos and self._llama.adds_bos else text

    def _fits(self, call: TextCall, text: str, images: Mapping[str, Image]) -> bool:
        context = self._llama.context_length
        if len(text) // self._llama.longest_piece >= context:
            return False
        count = len(self._spliced(text, images)[0])
        return count + min(call.max_tokens or 1, context // 2) <= context

    # -- completions --------------------------------------------------------------------------------------------------

    def _completion(self, call: TextCall, prompt: str | list[int]) -> Prompt:
        if isinstance(prompt, str):
            if call.suffix:
                return self._infill(call, prompt, call.suffix)
            return self._written(prompt, self._keep(call))
        self._llama.check_tokens(prompt, param="prompt")
        if call.suffix:
            raise UnsupportedValue("suffix needs the prompt as text, not as tokens", param="suffix")
        tokens = self._checked(prompt, param="prompt", truncate=self._keep(call))
        return Prompt(tokens, self._said(tokens))

    def _written(self, text: str, keep: int | None) -> Prompt:
        """A prompt given as text, or as much of its end as makes `keep` tokens."""
        head = text if keep is None else text[-keep * self._llama.longest_piece :]
        tokens = self._tokens(head, param="prompt", truncate=keep)
        whole = keep is None or len(tokens) < keep
        return Prompt(tokens, head if whole else self._said(tokens))

    def _said(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._llama.piece, tokens)).decode("utf-8", "replace")

    def _infill(self, call: TextCall, prompt: str, suffix: str) -> Prompt:
        marks = self._llama.infill
        if marks is None:
            raise UnsupportedValue(
                "this model has no fill-in-the-middle tokens: leave suffix out", param="suffix"
            )

        self._bound(prompt, param="prompt")
        self._bound(suffix, param="suffix")

        def plain(text: str) -> list[int]:
            return self._llama.tokenize(text, special=False, add_special=False)

        before, after, middle = marks
        tokens = [before, *plain(prompt), after, *plain(suffix), middle]
        if self._llama.adds_bos:
            tokens.insert(0, self._llama.bos)
        return Prompt(self._checked(tokens, param="prompt"), prompt)

    def _keep(self, call: TextCall) -> int | None:
        """Tokens of prompt to keep at most under truncation: room for the answer asked for, or a quarter."""
        if not call.truncate:
            return None
        context = self._llama.context_length
        answer = context // 4 if call.max_tokens is None else min(call.max_tokens, context // 2)
        return max(1, context - max(1, answer))

    # -- tokens -------------------------------------------------------------------------------------------------------

    def _tokens(self, text: str, *, param: str, truncate: int | None = None) -> list[int]:
        if truncate is None:
            self._bound(text, param=param)
        tokens = self._llama.tokenize(text, special=True, add_special=True)
        if truncate is not None and len(tokens) > truncate and self._llama.adds_bos:
            tokens = [
                tokens[0],
                *tokens[len(tokens) - truncate + 1 :],
            ]  # many models are lost without their BOS
        return self._checked(tokens, param=param, truncate=truncate)

    def _bound(self, text: str, *, param: str) -> None:
        """Refuse what no tokenizer could make fit: tokenising tens of megabytes takes minutes."""
        least = len(text) // self._llama.longest_piece
        if least >= self._llama.context_length:
            raise self._too_long(f"at least {least}", param)

    def _checked(self, tokens: list[int], *, param: str, truncate: int | None = None) -> list[int]:
        if truncate is not None:
            tokens = tokens[-truncate:]
        if not tokens:
            start = self._llama.bos if self._llama.bos >= 0 else self._llama.eos
            if start < 0:
                raise BadRequest(
                    "the prompt is empty, and this model has no token to begin with", param=param
                )
            tokens = [start]
        if len(tokens) >= self._llama.context_length:
            raise self._too_long(str(len(tokens)), param)
        return tokens

    def _too_long(self, count: str, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            # The first words are OpenAI's: clients know the error by them.
            f"This model's maximum context length is {self._llama.context_length} tokens and the prompt has {count}: "
            "shorten it, send truncation=auto, or serve the model with a larger --ctx",
            param=param,
        )


def resumes(call: TextCall) -> bool:
    """Whether the prompt of a chat ends within an assistant's message, which the answer goes on with."""
    last = call.messages[-1] if call.messages else None
    return last is not None and last.role == "assistant" and not call.new_turn


def long_id() -> str:
    """An id of a tool call, as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """An id of a tool call for models whose templates count its characters."""
    return secrets.token_hex(5)[:9]
