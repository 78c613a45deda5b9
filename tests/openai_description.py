"""Judges of what the server says: OpenAI's own description where the shared folder has it, the SDK's types always."""

import gzip
import json
from functools import cache
from pathlib import Path

import jsonschema
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject
from pydantic import BaseModel

DESCRIPTION = Path(__file__).resolve().parents[2] / "shared" / "reference" / "openai-openapi.json.gz"

_SDK_TYPES: dict[str, type[BaseModel]] = {
    "CreateChatCompletionResponse": ChatCompletion,
    "CreateChatCompletionStreamResponse": ChatCompletionChunk,
    "CreateCompletionResponse": Completion,
    "CreateEmbeddingResponse": CreateEmbeddingResponse,
    "Model": Model,
}


def described() -> bool:
    """Whether OpenAI's description is here."""
    return DESCRIPTION.is_file()


@cache
def description() -> dict[str, object]:
    """OpenAI's description, its OpenAPI 3.0 word `nullable` said in JSON Schema."""
    document = _with_null(json.loads(gzip.decompress(DESCRIPTION.read_bytes())))
    assert isinstance(document, dict)
    return document


def _with_null(node: object) -> object:
    if isinstance(node, list):
        return [_with_null(each) for each in node]
    if not isinstance(node, dict):
        return node
    plain = {name: _with_null(value) for name, value in node.items() if name != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **description()})


def judge(name: str, value: object) -> None:
    """Fail unless `value` is what OpenAI's schema `name` describes."""
    if described():
        _validator(name).validate(value)
    if name == "ErrorResponse":
        assert isinstance(value, dict)
        ErrorObject.model_validate_json(json.dumps(value["error"]), strict=True)
    if name in _SDK_TYPES:
        _SDK_TYPES[name].model_validate_json(json.dumps(value), strict=True)


def judge_completion_chunk(value: dict[str, object]) -> None:
    """Fail unless it is a chunk of a streamed completion.

    OpenAI describes no such chunk. It sends its whole-answer object with null where nothing is known yet.
    """
    choices = value["choices"]
    assert isinstance(choices, list)
    known = [{**each, "finish_reason": each["finish_reason"] or "stop"} for each in choices]
    judge(
        "CreateCompletionResponse",
        {name: held for name, held in {**value, "choices": known}.items() if held is not None},
    )


def events_of(stream: bytes) -> list[dict[str, object]]:
    """The JSON events of a server-sent stream that ends with [DONE]."""
    texts = [block for block in stream.decode().split("\n\n") if block and not block.startswith(":")]
    assert all(text.startswith("data: ") for text in texts)
    assert texts.pop() == "data: [DONE]"
    return [json.loads(text.removeprefix("data: ")) for text in texts]
