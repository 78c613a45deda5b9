"""A small client of a running server: find it, ask it, stream a chat from it, get its errors back as errors.

`Client` is synchronous, over httpx, for the commands; `stream_connection.py` is its lean asynchronous sibling,
for the load generator. Both speak the wire types below; `EventDecoder`, the SSE parser of both, does no I/O.

Whatever goes wrong is an `OxloError`: the server's own error object, before or in the middle of a stream, or
`Unavailable` with the address when nobody answers there.
"""

import io
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from msgspec import Struct

from oxlo_local import __version__
from oxlo_local.errors import BadRequest, OxloError, ServerError, Unavailable, from_code

T = TypeVar("T")

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0  # for the small GETs; a chat may wait in the queue as long as its user is patient


# -- where the server is -------------------------------------------------------------------------------------


class ServeFile(Struct, frozen=True):
    """What a running `serve` leaves in OXLO_HOME."""

    url: str
    pid: int
    admin_token: str


@dataclass(frozen=True)
class Address:
    """Base URL without `/v1`, and the bearer token to send; None sends none."""

    url: str
    token: str | None = field(default=None, repr=False)

    @property
    def loopback(self) -> bool:
        """Whether the URL names this machine, so that no proxy may come between."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


def parse_url(text: str) -> str:
    """`host:8000`, `http://host:8000/` and `http://host:8000/v1` are all `http://host:8000`.

    Raises BadRequest for anything that is no http(s) address.
    """
    url = text.strip() if "://" in text else f"http://{text.strip()}"
    try:
        parts = urlsplit(url)
        valid = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port is None or parts.port > 0)
            and parts.hostname.encode("idna")  # as it is looked up; an empty or endless label is none
        )
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise BadRequest(f"{text!r} is no server address; write it as http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def read_serve_file(path: Path) -> ServeFile | None:
    """The running server's address; None when no server has left one, or one is just being written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServeFile)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}; give the address with --url") from error


def locate(serve_file: Path, *, url: str | None = None, key: str | None = None) -> Address:
    """Where to send requests: `url`, else the running server of this OXLO_HOME; `key` beats its admin token.

    The admin token goes to nobody but the server that made it. Raises Unavailable when no server is found.
    """
    running = read_serve_file(serve_file)
    own = parse_url(running.url) if running else None
    wanted = parse_url(url) if url else own
    if wanted is None:
        raise Unavailable("no server is running here; start one with `oxlo serve`, or name one with --url")
    return Address(wanted, key or (running.admin_token if running and wanted == own else None))


# -- what goes over the wire ---------------------------------------------------------------------------------


class Turn(Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str


class StreamOptions(Struct, frozen=True):
    """Asks for the usage chunk at the end of a stream."""

    include_usage: bool = True


class ChatBody(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Body of a chat request; None is left out, so that the model's own default holds."""

    model: str
    messages: list[Turn]
    max_completion_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None


class _StreamedBody(ChatBody, frozen=True, kw_only=True):
    stream: bool
    stream_options: StreamOptions


class PromptDetails(Struct, frozen=True):
    """Part of the prompt that needed no computing."""

    cached_tokens: int = 0


class ChatUsage(Struct, frozen=True):
    """Tokens of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0


class Delta(Struct, frozen=True):
    """What one chunk adds to a choice."""

    content: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(Struct, frozen=True):
    """One choice's part of a chunk."""

    delta: Delta = Delta()
    text: str | None = None  # of a completion, which has no delta
    finish_reason: str | None = None


class ErrorObject(Struct, frozen=True):
    """The inside of the one error shape; other servers put HTTP numbers in `code`."""

    message: str = ""
    code: str | int | None = None
    param: str | None = None


class Chunk(Struct, frozen=True):
    """One `data:` event of a chat or completion stream. `usage` comes in the last one; `error` ends the stream."""

    model: str = ""
    choices: list[ChunkChoice] = []
    usage: ChatUsage | None = None
    error: ErrorObject | None = None

    @property
    def text(self) -> str:
        """What the chunk adds to the first choice's answer."""
        return self.choices[0].delta.content or self.choices[0].text or "" if self.choices else ""

    @property
    def has_output(self) -> bool:
        """Whether a token stands behind it; the first and last chunks of a stream only open and close it."""
        return any(
            choice.delta.content or choice.delta.reasoning_content or choice.text for choice in self.choices
        )


class ModelItem(Struct, frozen=True):
    """One entry of /v1/models; a server of another make knows only `id`."""

    id: str
    kind: str = "chat"
    status: str = "ready"
    context_length: int | None = None
    price_usd: str | float | None = None
    display_name: str = ""


class _ModelList(Struct, frozen=True):
    data: list[ModelItem]


class _ErrorBody(Struct, frozen=True):
    error: ErrorObject


@dataclass(frozen=True)
class Head:
    """What the headers of a metered answer say; an empty text is a header that was not sent."""

    entry: str = ""
    price_usd: str = ""
    warnings: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Self:
        """Read from headers whose names are in lower case."""
        return cls(
            headers.get("x-oxlo-entry", ""),
            headers.get("x-oxlo-price-usd", ""),
            headers.get("x-oxlo-warnings", ""),
        )


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_models = msgspec.json.Decoder(_ModelList).decode
_decode_model = msgspec.json.Decoder(ModelItem).decode
_encode = msgspec.json.Encoder().encode
CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"


def encode_chat(body: ChatBody) -> bytes:
    """The JSON of a streamed chat request."""
    fields = {name: getattr(body, name) for name in ChatBody.__struct_fields__}
    return _encode(_StreamedBody(**fields, stream=True, stream_options=StreamOptions()))


def decode_chunk(data: bytes) -> Chunk:
    """One event's data as a chunk. Raises the server's error if it is one, ServerError if it is neither."""
    try:
        chunk = _decode_chunk(data)
    except msgspec.DecodeError as error:
        raise ServerError(f"the server sent a stream event that is no chat chunk: {error}") from error
    if chunk.error is not None:
        raise raised(chunk.error, 500)
    return chunk


def error_from(status: int, body: bytes, headers: Mapping[str, str], url: str) -> OxloError:
    """The exception for an answer that is no success; a body in no known shape is quoted, cut."""
    try:
        error = raised(msgspec.json.decode(body, type=_ErrorBody).error, status)
    except msgspec.DecodeError:
        said = body[:200].decode("utf-8", "replace").strip()
        error = ServerError(f"{url} answered {status}" + (f": {said}" if said else ""))
    try:
        error.retry_after = float(headers["retry-after"])
    except (KeyError, ValueError):
        pass  # none was sent, or it is a date, which our server never sends
    return error


def raised(error: ErrorObject, status: int) -> OxloError:
    """The exception for an error object; `status` decides where the object does not."""
    if isinstance(error.code, str):
        return from_code(error.code, error.message, param=error.param)
    if 400 <= status < 500:
        return BadRequest(error.message, param=error.param)
    return ServerError(error.message, param=error.param)


class EventDecoder:
    """Server-sent events, sans I/O: bytes in, each whole event's data out. Chunk borders do not matter."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        """The data of each event that `received` completes; comments (heartbeats) are skipped."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events


# -- synchronous ---------------------------------------------------------------------------------------------


def events_of(response: httpx.Response) -> Iterator[bytes]:
    """The data of each event of a streamed answer."""
    events = EventDecoder()
    for received in response.iter_raw():
        yield from events.feed(received)


class EventStream:
    """An answer that is coming in: its head at once, then the data of its events, once."""

    def __init__(self, response: httpx.Response) -> None:
        self.head = Head.of(response.headers)
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return events_of(self._response)


class ChatStream:
    """An answer that is coming in: its head at once, then its chunks, once."""

    def __init__(self, response: httpx.Response) -> None:
        self.head = Head.of(response.headers)
        self._response = response

    def __iter__(self) -> Iterator[Chunk]:
        """Raises the server's error where the stream ends in one, ServerError where it just stops."""
        for data in events_of(self._response):
            if data == b"[DONE]":
                return
            yield decode_chunk(data)
        raise ServerError("the server ended the answer without saying why; look at its log")


class Client:
    """A connection to one server, for one thread. Every method raises OxloError and nothing else."""

    def __init__(self, address: Address) -> None:
        headers = {"user-agent": f"oxlo/{__version__}", "accept-encoding": "identity"}
        if address.token:
            headers["authorization"] = f"Bearer {address.token}"
        self.address = address
        self._http = httpx.Client(
            base_url=address.url,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=not address.loopback,
            verify=address.url.startswith("https:"),  # reading the certificates costs more than a request
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back; a stream that still runs is cut, which the server notices."""
        self._http.close()

    def get(self, path: str) -> bytes:
        """The body of a GET."""
        with self._reaching():
            response = self._http.get(path)
        if not response.is_success:
            raise error_from(response.status_code, response.content, response.headers, self.address.url)
        return response.content

    def models(self) -> list[ModelItem]:
        """What the server lists, in its order."""
        return self._decoded("/v1/models", _decode_models).data

    def model(self, name: str) -> ModelItem:
        """One model by id or alias. Raises ModelNotFound, which names the nearest."""
        return self._decoded(f"/v1/models/{quote(name, safe='')}", _decode_model)

    def ready(self) -> bool:
        """Whether every preloaded model has answered its warm-up request."""
        with self._reaching():
            return self._http.get("/readyz").is_success

    def metrics(self) -> str:
        """The Prometheus text."""
        return self.get("/metrics").decode()

    @contextmanager
    def chat(self, body: ChatBody) -> Iterator[ChatStream]:
        """Ask, and stream the answer; leaving the block early tells the server that nobody reads on."""
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        with self._streaming(CHAT_PATH, content=encode_chat(body), headers=headers) as response:
            yield ChatStream(response)

    def send_file(
        self, path: str, file: io.FileIO, name: str, fields: Mapping[str, list[str]]
    ) -> Iterator[bytes]:
        """Send a form with a file, which is read as it is sent; the data of each event of the streamed answer."""
        with self._streaming(path, data=fields, files={"file": (name, file)}) as response:
            yield from events_of(response)

    @contextmanager
    def send_json(self, path: str, body: bytes) -> Iterator["EventStream"]:
        """Send a body; the streamed answer. Leaving the block early tells the server that nobody reads on."""
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        with self._streaming(path, content=body, headers=headers) as response:
            yield EventStream(response)

    @contextmanager
    def _streaming(
        self,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, list[str]] | None = None,
        files: Mapping[str, tuple[str, io.FileIO]] | None = None,
    ) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        with (
            self._reaching(),
            self._http.stream(
                "POST", path, content=content, headers=headers, data=data, files=files, timeout=timeout
            ) as response,
        ):
            if not response.is_success:
                raise error_from(response.status_code, response.read(), response.headers, self.address.url)
            yield response

    def _decoded(self, path: str, decode: Callable[[bytes], T]) -> T:
        try:
            return decode(self.get(path))
        except msgspec.DecodeError as error:
            raise ServerError(f"{self.address.url}{path} answers in no known form: {error}") from error

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(f"no server answers at {self.address.url}; is `oxlo serve` running?") from error
        except httpx.TimeoutException as error:
            raise Unavailable(f"{self.address.url} has not answered for {ANSWER_SECONDS:.0f} s") from error
        except httpx.HTTPError as error:
            raise ServerError(f"lost the connection to {self.address.url}: {error}") from error
