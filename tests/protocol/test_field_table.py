"""The README's table of request fields: complete by OpenAI's description, and what the code does."""

import re
from pathlib import Path

import pytest

from oxlo_local.protocol.fields import CHAT, COMPLETIONS, EMBEDDINGS, Field
from tests.openai_description import described, description

README = Path(__file__).resolve().parents[2] / "README.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", re.MULTILINE)
TABLES = {
    "chat": (CHAT, "CreateChatCompletionRequest"),
    "completion": (COMPLETIONS, "CreateCompletionRequest"),
    "embedding": (EMBEDDINGS, "CreateEmbeddingRequest"),
}


def printed(table: str) -> dict[str, tuple[str, str]]:
    """Fate and note of each field, as the README has them."""
    text = README.read_text("utf-8")
    begin, end = text.index(f"<!-- begin {table} fields"), text.index(f"<!-- end {table} fields")
    return {name: (fate, note) for name, fate, note in ROW.findall(text[begin:end])}


def properties(schema: object, schemas: dict[str, object]) -> set[str]:
    """Names of the members that a schema describes, its references and parts included."""
    if not isinstance(schema, dict):
        return set()
    names = set(schema.get("properties", {}))
    if "$ref" in schema:
        names |= properties(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for part in schema.get("allOf", []):
        names |= properties(part, schemas)
    return names


@pytest.mark.parametrize("table", TABLES)
def test_the_readme_says_what_the_code_does(table: str) -> None:
    rows = printed(table)
    fields: dict[str, Field] = {field.name: field for field in TABLES[table][0]}
    assert {name: fate for name, (fate, _) in rows.items()} == {name: f.fate for name, f in fields.items()}
    for name, (_, note) in rows.items():
        assert fields[name].about.replace("|", "\\|") in note


@pytest.mark.skipif(not described(), reason="OpenAI's description is not in the shared folder here")
@pytest.mark.parametrize("table", TABLES)
def test_no_field_of_openais_is_missing(table: str) -> None:
    document = description()
    schemas = document["components"]["schemas"]  # type: ignore[index]
    fields, schema = TABLES[table]
    described_names = properties(schemas[schema], schemas)
    assert len(described_names) >= 5
    honoured_as_openais = {
        field.name for field in fields if field.fate != "extension" and field.name != "tfs_z"
    }
    assert honoured_as_openais == described_names
    assert described_names <= printed(table).keys()


@pytest.mark.parametrize("table", TABLES)
def test_the_sdk_can_send_nothing_that_is_not_in_the_table(table: str) -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
    from openai.types.completion_create_params import CompletionCreateParamsBase as Completion
    from openai.types.embedding_create_params import EmbeddingCreateParams as Embedding

    params = {"chat": Chat, "completion": Completion, "embedding": Embedding}[table].__annotations__.keys()
    assert params <= printed(table).keys()
