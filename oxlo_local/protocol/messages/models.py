"""/v1/models as Anthropic's clients know it: in pages, and only what /v1/messages serves."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from oxlo_local.errors import BadRequest
from oxlo_local.protocol.models import ModelItem

KIND = "chat"
PAGE, LARGEST_PAGE = 20, 1000


def item(model: ModelItem) -> bytes:
    """The body of /v1/models/{id}."""
    return msgspec.json.encode(_object(model))


def listing(models: Sequence[ModelItem], query: Mapping[str, str]) -> bytes:
    """The body of /v1/models: the page that `after_id` or `before_id`, and `limit`, ask for. Raises BadRequest."""
    served = [model for model in models if model.kind == KIND]
    limit = _limit(query.get("limit"))
    after, before = (_place(served, query, name) for name in ("after_id", "before_id"))
    if after is not None and before is not None:
        raise BadRequest("Send 'after_id' or 'before_id', not both.", param="before_id")
    if before is not None:
        page, more = served[max(0, before - limit) : before], before > limit
    else:
        start = 0 if after is None else after + 1
        page, more = served[start : start + limit], start + limit < len(served)
    return msgspec.json.encode(
        {
            "data": [_object(model) for model in page],
            "has_more": more,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
    )


def _object(model: ModelItem) -> dict[str, object]:
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": model.context_length,
        "max_tokens": model.context_length,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return PAGE
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= LARGEST_PAGE:
        raise BadRequest(f"'limit' is 1 to {LARGEST_PAGE}.", param="limit")
    return int(text)


def _place(models: Sequence[ModelItem], query: Mapping[str, str], name: str) -> int | None:
    id = query.get(name)
    if id is None:
        return None
    place = next((place for place, model in enumerate(models) if model.id == id), None)
    if place is None:
        raise BadRequest(f"'{name}' is not the id of a model in this list.", param=name)
    return place
