"""/v1/images/generations, /edits and /variations, and the files that their answers tell the address of.

A body is JSON, as the hosted product has it, or a form, as OpenAI's SDKs send what has files. Either way the files lie
on the disk while the engine draws, and are gone before the answer's end.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from oxlo_local.api.body import read_request
from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.api.guard import is_form
from oxlo_local.api.stream import RunAnswer, facts_of
from oxlo_local.api.upload import Form, Takes, laid_down, read_form
from oxlo_local.calls import Drawn, Event, ImageCall
from oxlo_local.catalogue import Model
from oxlo_local.errors import BadRequest
from oxlo_local.outputs import MEDIA_TYPES
from oxlo_local.protocol import parts
from oxlo_local.protocol.images import answer
from oxlo_local.protocol.images.request import (
    IMAGE,
    MASK,
    ImageRequest,
    Task,
    check_files,
    check_model,
    decode,
    decode_form,
    steps_of,
    to_call,
)
from oxlo_local.protocol.images.sources import BYTES, MOST

OUTPUT_PATH: Final = "/v1/outputs/{name}"
TAKES: Final = Takes({IMAGE: MOST, MASK: 1}, bytes=BYTES)
_FORM_ROOM: Final = 1 << 20  # of a form, beside its files
_SEEDS: Final = 2**32  # of which the server draws one: every language reads such a number exactly


async def generate(state: State, request: Request) -> ASGIApp:
    """Words in, images out, as base64 or by address; or a stream of what they look like so far."""
    return partial(_answer, state, "generate")


async def edit(state: State, request: Request) -> ASGIApp:
    """An image and words in, the image drawn anew out: as a whole, or where a mask allows it."""
    return partial(_answer, state, "edit")


async def vary(state: State, request: Request) -> ASGIApp:
    """An image in, images like it out."""
    return partial(_answer, state, "vary")


async def output(state: State, request: Request) -> Response:
    """An image that an answer told the address of, until it expires."""
    name = request.path_params["name"]
    data, left = await asyncio.to_thread(state.outputs.read, name)
    headers = {
        "cache-control": f"private, max-age={int(left)}",
        "content-disposition": f'inline; filename="{name}"',
        "x-content-type-options": "nosniff",
    }
    return Response(data, headers=headers, media_type=MEDIA_TYPES[name.rpartition(".")[2]])


# -- from body to answer ----------------------------------------------------------------------------------------------


async def _answer(state: State, task: Task, scope: Scope, receive: Receive, send: Send) -> None:
    """The files are on the disk for as long as this runs."""
    request = Request(scope, receive)
    async with _sent(state, request, task) as (asked, form):
        images, masks = form.of(IMAGE), form.of(MASK)
        check_files(task, len(images), mask=bool(masks))
        for name, files in form.files.items():
            if any(file.size == 0 for file in files):
                raise BadRequest(f"'{name}' is empty; send an image.", param=name)
        told = _Told(state, request, asked)
        run = _run(state, request, task, asked, form, told)
        try:
            await run(scope, receive, form.gone_before(send))
        finally:
            if not run.complete:
                await told.forget()


@asynccontextmanager
async def _sent(state: State, request: Request, task: Task) -> AsyncIterator[tuple[ImageRequest, Form]]:
    """What is asked for, and its files. Raises what reading a body of either kind raises."""
    settings = state.settings
    read = partial(decode, task=task, max_n=settings.choices_max)
    if not is_form(request):
        asked = await read_request(state, request, read)
        files = [(IMAGE, each.data) for each in asked.images]
        files += [(MASK, asked.mask.data)] if asked.mask is not None else []
        async with laid_down(state.uploads, files) as form:
            yield asked.request, form
        return
    limit = min(settings.max_upload_bytes, (MOST + 1) * BYTES + _FORM_ROOM)
    async with read_form(request, state.uploads, limit, TAKES) as form:
        fields = [*form.fields, *((name, "a file") for name in form.dropped)]
        found, warnings = decode_form(fields, task, strict=settings.strict, max_n=settings.choices_max)
        exchange_of(request).warnings += warnings
        yield found.request, form


def _run(
    state: State, request: Request, task: Task, asked: ImageRequest, form: Form, told: "_Told"
) -> RunAnswer:
    exchange = exchange_of(request)
    images, masks = [str(file.path) for file in form.of(IMAGE)], form.of(MASK)
    seed = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed

    def call_for(model: Model) -> ImageCall:
        facts = state.fleet.facts(model.id)
        known = facts.image if facts is not None else None
        if known is not None:
            check_model(asked, known, len(images), mask=bool(masks))
        return to_call(
            asked,
            parts.new_id("img"),
            seed=seed,
            steps=steps_of(asked, known),
            model=model.id,
            images=images,
            mask=str(masks[0].path) if masks else None,
        )

    return RunAnswer(
        state,
        exchange,
        facts_of(request, asked.metadata, units=asked.count),
        model=asked.model or _only_model(state),
        call_for=call_for,
        renderer_for=lambda model: answer.renderer(
            asked, task, model=model.id, created=exchange.created, urls=told.urls
        ),
        streamed=bool(asked.stream),
        kind="image",
        before=told.keep,
    )


def _only_model(state: State) -> str:
    """The image model that runs, for clients that leave it to the server. Raises BadRequest unless there is one."""
    running = [worker.model for worker in state.fleet.status()]
    models = [name for name in running if state.catalogue.models[name].kind == "image"]
    if len(models) != 1:
        several = f"; running are {', '.join(models)}" if models else ", and no image model runs here"
        raise BadRequest(f"Missing required parameter: 'model'{several}.", param="model")
    return models[0]


class _Told:
    """The files of an answer by address: kept as their images come, and told in their places."""

    def __init__(self, state: State, request: Request, asked: ImageRequest) -> None:
        self.urls: dict[int, str] = {}
        self._outputs = state.outputs
        self._asked = asked
        self._origin = f"{request.url.scheme}://{request.url.netloc}"  # the name that the client called
        self._names: list[str] = []

    async def keep(self, events: Sequence[Event]) -> None:
        """Write what is to be had by address. Raises Unavailable."""
        for event in events if self._asked.by_url else ():
            if isinstance(event, Drawn):
                name = await asyncio.to_thread(self._outputs.keep, event.data, self._asked.format)
                self._names.append(name)
                self.urls[event.index] = self._origin + OUTPUT_PATH.format(name=name)

    async def forget(self) -> None:
        """Nobody has been told."""
        if self._names:
            await asyncio.to_thread(self._outputs.drop, self._names)
