"""Anthropic's messages as the turns of a chat.

Neighbours of one role are one turn there, and a user's turn holds the results of calls; here a result is a turn of its
own, before the user's words. Each call needs its result, and each result its call, as Anthropic demands it too.

An assistant's texts are joined as they are, since they were one text once; all others with line feeds, as a chat's
parts are. A document or a passage of text is shown to the model between tags, an error of a tool begins with `Error: `.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from oxlo_local.calls import Message, Picture, ToolCall
from oxlo_local.errors import BadRequest, UnsupportedValue
from oxlo_local.protocol import pictures
from oxlo_local.protocol.messages import blocks
from oxlo_local.protocol.messages.blocks import AnyBlock, ImageBlock, InputMessage, TextBlock
from oxlo_local.protocol.messages.thinking import thought_of
from oxlo_local.protocol.schemas import check_size

_BELONGS = {
    "user": (
        blocks.TextBlock,
        blocks.ImageBlock,
        blocks.DocumentBlock,
        blocks.SearchResultBlock,
        blocks.ToolResultBlock,
    ),
    "assistant": (TextBlock, blocks.ThinkingBlock, blocks.RedactedThinkingBlock, blocks.ToolUseBlock),
    "system": (TextBlock,),
}


class Placed(NamedTuple):
    """A block and where it stands in the request."""

    path: str
    block: AnyBlock


@dataclass
class Conversation:
    """The turns in the engine's words, with marks for the images; the names of deferred tools that they refer to; what
    had no effect. `id` is in the marks, so that no client can have written one.
    """

    id: str
    turns: list[Message] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    references: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)


def conversation_of(
    system: str | Sequence[TextBlock] | None, messages: Sequence[InputMessage], id: str
) -> Conversation:
    """The conversation. Raises BadRequest and its kinds, with the path of the field."""
    told = Conversation(id)
    if system:
        text = system if isinstance(system, str) else "\n".join(block.text for block in system)
        told.turns.append(Message("system", text))
    open_calls: dict[str, str] = {}  # id -> path, of the turn before
    for role, run in groupby(enumerate(messages), key=lambda numbered: numbered[1].role):
        placed = [each for index, message in run for each in _placed(index, message, role)]
        if role == "assistant":
            _assistant(told, placed)
            open_calls = _calls_in(placed)
        elif role == "user":
            _user(told, placed, open_calls)
        else:
            told.turns.append(Message("system", _text(placed, told)))
        if open_calls and role != "assistant":
            _unanswered(open_calls)
    _unanswered(open_calls)
    return told


def _unanswered(open_calls: dict[str, str]) -> None:
    for path in open_calls.values():
        raise BadRequest(
            "This call has no result: a 'tool_result' block with its id is due in the next user message.",
            param=path,
        )


def _placed(index: int, message: InputMessage, role: str) -> list[Placed]:
    path = f"messages[{index}].content"
    if isinstance(message.content, str):
        return [Placed(path, TextBlock(text=message.content))]
    placed = [Placed(f"{path}[{place}]", block) for place, block in enumerate(message.content)]
    for here, block in placed:
        if not isinstance(block, _BELONGS[role]):
            kind = block.__struct_config__.tag
            raise BadRequest(
                f"A block of type '{kind}' has no place in {role} messages.", param=f"{here}.type"
            )
    return placed


def without_thoughts(turns: Sequence[Message], keep: int) -> list[Message]:
    """The turns with the thoughts of no more than the last `keep` of the assistant's."""
    theirs = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    cleared = frozenset(theirs[: max(0, len(theirs) - keep)])
    return [replace(turn, reasoning=None) if place in cleared else turn for place, turn in enumerate(turns)]


# -- the assistant ----------------------------------------------------------------------------------------------------


def _assistant(told: Conversation, placed: Sequence[Placed]) -> None:
    texts, thoughts, calls = [], [], []
    for path, block in placed:
        match block:
            case blocks.TextBlock():
                texts.append(block.text)
            case blocks.ThinkingBlock():
                thoughts.append(thought_of(block, path))
            case blocks.RedactedThinkingBlock():
                told.warnings.append(f"{path} has no effect: its thoughts can be read by their maker only")
            case blocks.ToolUseBlock():
                calls.append(ToolCall(block.id, block.name, _json(block.input, f"{path}.input")))
    told.turns.append(
        Message("assistant", "".join(texts), tool_calls=calls, reasoning="\n\n".join(thoughts) or None)
    )


def _json(value: dict[str, object], path: str) -> str:
    """The input of a call as text, checked: templates take it apart."""
    try:
        check_size(value, path)
    except BadRequest:
        raise BadRequest("The input of a call is a JSON object of moderate size.", param=path) from None
    return msgspec.json.encode(value).decode()


def _calls_in(placed: Sequence[Placed]) -> dict[str, str]:
    calls: dict[str, str] = {}
    for path, block in placed:
        if isinstance(block, blocks.ToolUseBlock):
            if block.id in calls:
                raise BadRequest("Two calls have the same id.", param=f"{path}.id")
            calls[block.id] = path
    return calls


# -- the user ---------------------------------------------------------------------------------------------------------


def _user(told: Conversation, placed: Sequence[Placed], open_calls: dict[str, str]) -> None:
    rest, results = [], 0
    for path, block in placed:
        if isinstance(block, blocks.ToolResultBlock):
            _answers(block, path, open_calls)
            told.turns.append(Message("tool", _result(block, path, told), tool_call_id=block.tool_use_id))
            results += 1
        else:
            rest.append(Placed(path, block))
    if rest or not results:
        told.turns.append(Message("user", _text(rest, told)))


def _answers(block: blocks.ToolResultBlock, path: str, open_calls: dict[str, str]) -> None:
    if open_calls.pop(block.tool_use_id, None) is None:
        raise BadRequest(
            "'tool_use_id' is not the id of a call in the turn before, or was answered already.",
            param=f"{path}.tool_use_id",
        )


def _result(block: blocks.ToolResultBlock, path: str, told: Conversation) -> str:
    if isinstance(block.content, list):
        inner = [Placed(f"{path}.content[{place}]", each) for place, each in enumerate(block.content)]
        text = _text(inner, told)
    else:
        text = block.content or ""
    return f"Error: {text}" if block.is_error else text


def _text(placed: Sequence[Placed], told: Conversation) -> str:
    """Blocks as one text: a line feed between two texts, none beside an image."""
    pieces: list[str] = []
    before: AnyBlock | None = None
    for path, block in placed:
        if before is not None and not isinstance(before, ImageBlock) and not isinstance(block, ImageBlock):
            pieces.append("\n")
        pieces.append(
            _image(block, path, told) if isinstance(block, ImageBlock) else _words(block, path, told)
        )
        before = block
    return "".join(pieces)


def _words(block: AnyBlock, path: str, told: Conversation) -> str:
    match block:
        case blocks.TextBlock():
            return block.text
        case blocks.DocumentBlock():
            _refuse_citations(block.citations, path)
            return _document(block, path, told)
        case blocks.SearchResultBlock():
            _refuse_citations(block.citations, path)
            found = "\n".join(each.text for each in block.content)
            return _tagged("search_result", {"source": block.source, "title": block.title}, found)
        case blocks.ToolReferenceBlock():
            told.references.add(block.tool_name)
            return f"The tool {block.tool_name} is there now."
    raise BadRequest("This block has no place here.", param=f"{path}.type")


def _image(block: ImageBlock, path: str, told: Conversation) -> str:
    """The mark of an image, which is noted."""
    match block.source:
        case blocks.Base64Image(media_type=kind, data=data):
            url, param = f"data:{kind};base64,{data}", f"{path}.source.data"
        case blocks.UrlImage(url=url):
            param = f"{path}.source.url"
    pictures.check_url(url, param)
    mark = pictures.mark(told.id, 0, len(told.pictures))
    told.pictures.append(Picture(mark, url, param))
    if len(told.pictures) > pictures.MOST:
        raise BadRequest(f"The conversation has more than {pictures.MOST} images.", param="messages")
    return mark


def _document(block: blocks.DocumentBlock, path: str, told: Conversation) -> str:
    match block.source:
        case blocks.PlainText():
            text = block.source.data
        case blocks.DocumentContent(content=str() as content):
            text = content
        case blocks.DocumentContent(content=list() as content):
            here = f"{path}.source.content"
            inner = [Placed(f"{here}[{place}]", each) for place, each in enumerate(content)]
            text = _text(inner, told)
        case _:
            raise UnsupportedValue(
                "PDF documents are not supported; send their text, as a source of type 'text'.",
                param=f"{path}.source.type",
            )
    return _tagged("document", {"title": block.title, "context": block.context}, text)


def _tagged(tag: str, about: dict[str, str | None], text: str) -> str:
    """Text between tags whose attributes are JSON strings."""
    known = "".join(
        f" {name}={msgspec.json.encode(value).decode()}" for name, value in about.items() if value is not None
    )
    return f"<{tag}{known}>\n{text}\n</{tag}>"


def _refuse_citations(citations: blocks.Citations | None, path: str) -> None:
    if citations is not None and citations.enabled:
        raise UnsupportedValue("Answers cite nothing; leave it out.", param=f"{path}.citations.enabled")
