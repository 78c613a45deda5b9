"""The content blocks of Anthropic's messages: their wire types.

The blocks of server tools (searches, code execution) are not among them: nothing of the kind runs here.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Id = Annotated[str, Meta(min_length=1, max_length=256)]


class CacheControl(Struct, frozen=True, tag_field="type", tag="ephemeral"):
    """Where a prefix should be kept. Every prefix is, so that it changes nothing."""

    ttl: Literal["5m", "1h"] | None = None


class Block(Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all blocks may have."""

    cache_control: CacheControl | None = None


class TextBlock(Block, frozen=True, kw_only=True, tag="text"):
    """Text. `citations` come back from earlier answers of other servers; the text is whole without them."""

    text: str
    citations: list[dict[str, object]] | None = None


class Base64Image(Struct, frozen=True, tag_field="type", tag="base64"):
    """An image in the request itself."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlImage(Struct, frozen=True, tag_field="type", tag="url"):
    """An image elsewhere."""

    url: str


class ImageBlock(Block, frozen=True, kw_only=True, tag="image"):
    """An image."""

    source: Base64Image | UrlImage


class PlainText(Struct, frozen=True, tag_field="type", tag="text"):
    """A document's text."""

    data: str
    media_type: Literal["text/plain"] = "text/plain"


class DocumentContent(Struct, frozen=True, tag_field="type", tag="content"):
    """A document given as blocks."""

    content: str | list[TextBlock | ImageBlock]


class PdfFile(Struct, frozen=True, tag_field="type", tag="base64"):
    """A PDF, which nothing here can read."""


class PdfUrl(Struct, frozen=True, tag_field="type", tag="url"):
    """A PDF elsewhere."""


class Citations(Struct, frozen=True):
    """Whether an answer should cite; nothing here does."""

    enabled: bool | None = None


class DocumentBlock(Block, frozen=True, kw_only=True, tag="document"):
    """A document; one of text is shown to the model, with its title and context."""

    source: PlainText | DocumentContent | PdfFile | PdfUrl
    title: str | None = None
    context: str | None = None
    citations: Citations | None = None


class SearchResultBlock(Block, frozen=True, kw_only=True, tag="search_result"):
    """A passage that the client has found."""

    source: str
    title: str
    content: list[TextBlock]
    citations: Citations | None = None


class ToolReferenceBlock(Block, frozen=True, kw_only=True, tag="tool_reference"):
    """A tool that was deferred and is now wanted."""

    tool_name: str


class DirectCaller(Struct, frozen=True, tag_field="type", tag="direct"):
    """The model itself."""


class ToolUseBlock(Block, frozen=True, kw_only=True, tag="tool_use"):
    """A call that the model made in an earlier turn."""

    id: Id
    name: Id
    input: dict[str, object]
    caller: DirectCaller | None = None


class ToolResultBlock(Block, frozen=True, kw_only=True, tag="tool_result"):
    """What came of a call."""

    tool_use_id: Id
    content: (
        str | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock] | None
    ) = None
    is_error: bool | None = None


class ThinkingBlock(Block, frozen=True, kw_only=True, tag="thinking"):
    """What the model thought in an earlier turn."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Block, frozen=True, kw_only=True, tag="redacted_thinking"):
    """A thought that only Anthropic's own servers can read."""

    data: str


Material = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock
UserBlock = Material | ToolResultBlock
AssistantBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock
AnyBlock = UserBlock | AssistantBlock | ToolReferenceBlock


class InputMessage(Struct, frozen=True):
    """One message as the client sent it."""

    role: Literal["user", "assistant", "system"]
    content: str | list[AnyBlock]


KINDS = frozenset(
    str(kind.__struct_config__.tag)
    for kind in (
        TextBlock,
        ImageBlock,
        DocumentBlock,
        SearchResultBlock,
        ToolUseBlock,
        ToolResultBlock,
        ToolReferenceBlock,
        ThinkingBlock,
        RedactedThinkingBlock,
    )
)
