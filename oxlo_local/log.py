"""Logging for parent and workers: one line an event, each with its request id. Never a prompt, file or answer."""

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from msgspec import json

request_id: ContextVar[str] = ContextVar("request_id", default="-")

ROOT = "oxlo_local"  # every room logs under its own module name
LINE = "%(asctime)s %(levelname).1s %(name)s [%(request_id)s] %(message)s"
WORKER_LINE = "%(levelname).1s %(name)s: %(message)s"


class _Stamp(logging.Filter):
    """Puts the request id of the current task on every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class _Json(logging.Formatter):
    """One JSON object a line: time, level, logger, request, message, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.encode(line).decode()


def start(level: str = "info", style: str = "text") -> None:
    """Log to stderr from `level` up, as `text` or `json`; a second call replaces the first."""
    stream = logging.StreamHandler(sys.stderr)
    stream.addFilter(_Stamp())
    stream.setFormatter(_Json() if style == "json" else logging.Formatter(LINE))
    for name in (ROOT, "oxlo", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [stream]
        logger.propagate = False
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def start_worker() -> None:
    """Log plain lines to stderr, which the parent collects as the engine's own words."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter(WORKER_LINE))
    logger = logging.getLogger(ROOT)
    logger.handlers = [stream]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def last_words() -> None:
    """Write the exception that is ending this worker, with its trace."""
    logging.getLogger(f"{ROOT}.worker").exception("the worker cannot go on")
