"""The README's table of request fields: complete by OpenAI's description, and what the code does."""

import json
import re
from pathlib import Path

import pytest

from oxlo_local.errors import UnsupportedValue
from oxlo_local.protocol import chat
from oxlo_local.protocol.fields import CHAT, COMPLETIONS, EMBEDDINGS, TRANSCRIPTIONS, TRANSLATIONS, Field
from oxlo_local.protocol.images import request as images
from oxlo_local.protocol.images.fields import EDITS, GENERATIONS, VARIATIONS
from tests.openai_description import described, description

README = Path(__file__).resolve().parents[2] / "README.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", re.MULTILINE)
TABLES: dict[str, tuple[tuple[Field, ...], str | None]] = {
    "chat": (CHAT, "CreateChatCompletionRequest"),
    "completion": (COMPLETIONS, "CreateCompletionRequest"),
    "embedding": (EMBEDDINGS, "CreateEmbeddingRequest"),
    "transcription": (TRANSCRIPTIONS, "CreateTranscriptionRequest"),
    "translation": (TRANSLATIONS, "CreateTranslationRequest"),
    "image generation": (GENERATIONS, "CreateImageRequest"),
    "image edit": (EDITS, None),  # of these two the SDK alone says what OpenAI takes
    "image variation": (VARIATIONS, None),
}
DESCRIBED = [table for table, (_, schema) in TABLES.items() if schema is not None]


def printed(table: str) -> dict[str, tuple[str, str]]:
    """Fate and note of each field, as the README has them."""
    text = README.read_text("utf-8")
    begin, end = text.index(f"<!-- begin {table} fields"), text.index(f"<!-- end {table} fields")
    return {name: (fate, note) for name, fate, note in ROW.findall(text[begin:end])}


def properties(schema: object, schemas: dict[str, object]) -> dict[str, object]:
    """The members that a schema describes, its references and parts included."""
    if not isinstance(schema, dict):
        return {}
    members: dict[str, object] = dict(schema.get("properties", {}))
    if "$ref" in schema:
        members |= properties(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for part in schema.get("allOf", []):
        members |= properties(part, schemas)
    return members


@pytest.mark.parametrize("table", TABLES)
def test_the_readme_says_what_the_code_does(table: str) -> None:
    rows = printed(table)
    fields: dict[str, Field] = {field.name: field for field in TABLES[table][0]}
    assert {name: fate for name, (fate, _) in rows.items()} == {name: f.fate for name, f in fields.items()}
    for name, (_, note) in rows.items():
        assert fields[name].about.replace("|", "\\|") in note


@pytest.mark.skipif(not described(), reason="OpenAI's description is not in the shared folder here")
@pytest.mark.parametrize("table", DESCRIBED)
def test_no_field_of_openais_is_missing(table: str) -> None:
    document = description()
    schemas = document["components"]["schemas"]  # type: ignore[index]
    fields, schema = TABLES[table]
    described_names = set(properties(schemas[str(schema)], schemas))
    assert len(described_names) >= 5
    honoured_as_openais = {
        field.name for field in fields if field.fate != "extension" and field.name != "tfs_z"
    }
    assert honoured_as_openais - sent_by_the_sdk(table) <= described_names <= honoured_as_openais
    assert described_names <= printed(table).keys()


def words(schema: object, schemas: dict[str, object]) -> set[str]:
    """The strings that a schema lists for a value: for the field itself, for the items of its list."""
    if not isinstance(schema, dict):
        return set()
    found = {each for each in schema.get("enum", []) if isinstance(each, str)}
    if "$ref" in schema:
        found |= words(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        found |= words(part, schemas)
    return found


@pytest.mark.skipif(not described(), reason="OpenAI's description is not in the shared folder here")
def test_every_word_that_openai_lists_for_a_field_is_taken_or_refused_by_name() -> None:
    """None is a mere wrong value: what OpenAI's clients may send, the server knows."""
    schemas = description()["components"]["schemas"]  # type: ignore[index]
    members = properties(schemas["CreateChatCompletionRequest"], schemas)
    asked = [(name, word) for name in members.keys() - {"model"} for word in words(members[name], schemas)]
    assert {"service_tier", "reasoning_effort", "verbosity", "tool_choice"} <= {name for name, _ in asked}
    tool = {"type": "function", "function": {"name": "f"}}
    for name, word in asked:
        offered = {"functions": [tool["function"]]} if name == "function_call" else {"tools": [tool]}
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **offered, name: word}
        try:
            chat.decode(json.dumps(body).encode(), strict=True)
        except UnsupportedValue as error:
            assert error.param == name


def sent_by_the_sdk(table: str) -> set[str]:
    """The fields that the SDK's types have."""
    from openai.types.audio.transcription_create_params import TranscriptionCreateParamsBase as Transcription
    from openai.types.audio.transcription_create_params import TranscriptionCreateParamsStreaming as Streaming
    from openai.types.audio.translation_create_params import TranslationCreateParams as Translation
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
    from openai.types.completion_create_params import CompletionCreateParamsBase as Completion
    from openai.types.embedding_create_params import EmbeddingCreateParams as Embedding
    from openai.types.image_create_variation_params import ImageCreateVariationParams as Variation
    from openai.types.image_edit_params import ImageEditParamsBase as Edit
    from openai.types.image_edit_params import ImageEditParamsStreaming as EditStream
    from openai.types.image_generate_params import ImageGenerateParamsBase as Generation
    from openai.types.image_generate_params import ImageGenerateParamsStreaming as GenerationStream

    params = {
        "chat": (Chat,),
        "completion": (Completion,),
        "embedding": (Embedding,),
        "transcription": (Transcription, Streaming),
        "translation": (Translation,),
        "image generation": (Generation, GenerationStream),
        "image edit": (Edit, EditStream),
        "image variation": (Variation,),
    }[table]
    return {name for kind in params for name in kind.__annotations__}


@pytest.mark.parametrize("table", TABLES)
def test_the_sdk_can_send_nothing_that_is_not_in_the_table(table: str) -> None:
    assert sent_by_the_sdk(table) <= printed(table).keys()


@pytest.mark.skipif(not described(), reason="OpenAI's description is not in the shared folder here")
def test_every_word_that_openai_lists_for_an_image_is_taken_or_refused_by_name() -> None:
    schemas = description()["components"]["schemas"]  # type: ignore[index]
    members = properties(schemas["CreateImageRequest"], schemas)
    asked = [(name, word) for name in members.keys() - {"model"} for word in words(members[name], schemas)]
    assert {"quality", "size", "style", "background", "moderation", "output_format"} <= {
        name for name, _ in asked
    }
    for name, word in asked:
        try:
            images.decode(json.dumps({"prompt": "x", name: word}).encode(), "generate", strict=True, max_n=10)
        except UnsupportedValue as error:
            assert error.param == name
