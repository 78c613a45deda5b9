"""POST /v1/audio/transcriptions and /v1/audio/translations: a file in, what is said in it out."""

from functools import partial

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from oxlo_local.api.exchange import State, exchange_of
from oxlo_local.api.stream import RunAnswer, facts_of
from oxlo_local.api.upload import Form, Takes, read_form
from oxlo_local.errors import BadRequest
from oxlo_local.protocol import parts
from oxlo_local.protocol.audio import answer
from oxlo_local.protocol.audio.request import FILE, Task, decode, to_call
from oxlo_local.uploads import Upload

TAKES = Takes({FILE: 1})


async def transcribe(state: State, request: Request) -> ASGIApp:
    """A file of speech in, its words out: as JSON, text, SRT, WebVTT, or a stream of events."""
    return partial(_answer, state, "transcribe")


async def translate(state: State, request: Request) -> ASGIApp:
    """A file of speech in any language in, its words in English out."""
    return partial(_answer, state, "translate")


async def _answer(state: State, task: Task, scope: Scope, receive: Receive, send: Send) -> None:
    """The file is on the disk for as long as this runs."""
    request = Request(scope, receive)
    async with read_form(request, state.uploads, state.settings.max_upload_bytes, TAKES) as form:
        await _run(state, request, task, form)(scope, receive, form.gone_before(send))


def _run(state: State, request: Request, task: Task, form: Form) -> RunAnswer:
    exchange = exchange_of(request)
    fields = [*form.fields, *((name, "a file") for name in form.dropped)]
    asked, warnings = decode(fields, task, strict=state.settings.strict)
    exchange.warnings += warnings
    path = str(_sent(form).path)
    return RunAnswer(
        state,
        exchange,
        facts_of(request, asked.metadata),
        model=asked.model,
        call_for=lambda _: to_call(asked, task, path, parts.new_id("audio")),
        renderer_for=lambda _: answer.renderer(asked, task),
        streamed=bool(asked.stream),
        kind="speech",
        media_type=answer.MEDIA_TYPES[asked.format],
    )


def _sent(form: Form) -> Upload:
    """The file. Raises BadRequest where there is none, or nothing in it."""
    files = form.of(FILE)
    if not files:
        raise BadRequest("Missing required parameter: 'file'; send it as a part with a filename.", param=FILE)
    if files[0].size == 0:
        raise BadRequest("'file' is empty; send a file with sound in it.", param=FILE)
    return files[0]
