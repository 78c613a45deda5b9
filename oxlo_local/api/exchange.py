"""What the HTTP rooms share: what the server is made of (`State`), and what is known of one request (`Exchange`)."""

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection
from starlette.types import Message

from oxlo_local.catalogue import Catalogue
from oxlo_local.config import Settings
from oxlo_local.db import Database
from oxlo_local.errors import TooManyRequests
from oxlo_local.inference import Caller, Inference, Run
from oxlo_local.keys import Keys
from oxlo_local.ledger import Entry, Ledger
from oxlo_local.metrics import Metrics
from oxlo_local.outputs import Outputs
from oxlo_local.protocol.dialect import OPENAI, Dialect
from oxlo_local.replays import Replays
from oxlo_local.uploads import Uploads
from oxlo_local.workers.supervisor import Fleet

SANE_ID = re.compile(
    r"[A-Za-z0-9._-]{1,128}"
)  # ids of a client's own that may stand in headers, log and rows


Keep = Callable[[Sequence[Message]], Awaitable[None]]


async def _keeps_nothing(end: Sequence[Message]) -> None:
    """Most answers are not kept."""


@dataclass(frozen=True)
class State:
    """The rooms behind the routes; `server.py` builds it.

    `draining` says whether new requests are refused, `missing` what readiness still waits for, a line each.
    """

    settings: Settings
    catalogue: Catalogue
    fleet: Fleet
    inference: Inference
    keys: Keys
    ledger: Ledger
    replays: Replays
    uploads: Uploads
    outputs: Outputs
    db: Database
    metrics: Metrics
    admin_token: str
    draining: Callable[[], bool]
    missing: Callable[[], list[str]]


@dataclass
class Exchange:
    """One request on its way through the rooms: each adds what it learns; headers, log and metrics are made of it."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))
    dialect: Dialect = OPENAI  # of the path that was asked for
    endpoint: str = "other"  # path of the route, never the path that was asked for
    caller: Caller | None = None
    model: str = ""  # id that runs
    run: Run | None = None
    entry: Entry | None = None
    refusal: TooManyRequests | None = None
    warnings: list[str] = field(default_factory=list)
    repeated: bool = False  # an answer that was kept under the request's Idempotency-Key
    status: int = 0
    client_left: bool = False
    body_left: bool = False  # the client is still sending what nobody will read
    claim_id: str | None = None  # of its Idempotency-Key
    keep: Keep = _keeps_nothing  # to be awaited with what ends the answer, before its row is closed

    @property
    def seconds(self) -> float:
        """Time since the request's first byte."""
        return time.perf_counter() - self.started


def exchange_of(connection: HTTPConnection) -> Exchange:
    """The exchange that `api/app.py` put into the scope."""
    exchange = connection.scope["oxlo.exchange"]
    assert isinstance(exchange, Exchange)
    return exchange
