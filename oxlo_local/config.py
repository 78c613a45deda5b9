"""Settings: one frozen record, read once from flags > environment (OXLO_…) > config.toml > defaults.

The fields of `Settings` are the only list of settings that exists. `SETTINGS` is that list as data: the flags of
`oxlo serve`, the table in the README and the tests are all made from it, so a new setting is one new field here.
A key that is no setting is an error that names the nearest one, wherever it stands.
"""

import difflib
import ipaddress
import os
import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
import platformdirs
from msgspec import Meta, Struct

from oxlo_local.errors import BadRequest

# Variables of ours that are no settings: the key that client commands send, and what `scripts/oxlo` installs.
OTHER_VARIABLES = frozenset({"OXLO_API_KEY", "OXLO_EXTRAS"})


_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+")


def about(text: str, ge: int | None = None, le: int | None = None) -> Meta:
    """What a setting is for, in half a line, and its limits."""
    return Meta(description=text, ge=ge, le=le)


Count = Annotated[int, Meta(ge=1)]
YEAR = 366 * 86_400  # seconds: more than that, or infinity, no timer takes
Seconds = Annotated[float, Meta(ge=0, le=YEAR)]
Interval = Annotated[float, Meta(gt=0, le=YEAR)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be configured. None = decided at run time, by measurement or from the model's file."""

    home: Annotated[Path, about("data folder: ledger, locks, manifests")]
    config: Annotated[Path, about("configuration file; the user's models.toml is looked for beside it")]

    host: Annotated[str, about("address to listen on; beyond loopback keys are always required")] = (
        "127.0.0.1"
    )
    port: Annotated[int, about("port to listen on; 0 takes a free one", ge=0, le=65535)] = 8000
    auth: Annotated[
        Literal["auto", "always", "never"],
        about("who needs a key: auto = everyone once a key exists; never works on loopback only"),
    ] = "auto"
    cors_origins: Annotated[
        list[str], about("web origins that may call the server, separated by commas")
    ] = []
    strict: Annotated[bool, about("refuse unknown request fields instead of naming them in a header")] = False
    max_body_bytes: Annotated[Count, about("largest JSON body; a longer one is a 413")] = 64 * 1024 * 1024
    max_upload_bytes: Annotated[
        Count, about("largest form with a file, which goes to the disk as it comes; a longer one is a 413")
    ] = 2 * 1024 * 1024 * 1024

    choices_max: Annotated[
        Annotated[int, Meta(ge=1, le=128)], about("largest n of a request; more is a 400")
    ] = 128
    queue_max: Annotated[Count, about("requests that may wait; one more is a 429 queue_full")] = 256
    request_timeout: Annotated[Seconds, about("seconds a request may take in all; 0 = no limit")] = 0
    heartbeat_seconds: Annotated[
        Interval, about("seconds of silence after which a stream gets a comment line")
    ] = 15
    write_timeout: Annotated[
        Interval, about("seconds after which a client that takes nothing of its answer counts as gone")
    ] = 60
    drain_seconds: Annotated[Seconds, about("seconds that running requests get after SIGTERM")] = 30
    step_timeout: Annotated[
        Interval, about("seconds without a finished engine step after which a worker is replaced")
    ] = 600
    ping_seconds: Annotated[Interval, about("seconds between two pings to a worker")] = 2

    demos: Annotated[
        bool,
        about("where no model is named: start the embedded demos of other kinds behind the first, unhurried"),
    ] = True
    ctx: Annotated[Count | None, about("context of each sequence, in tokens")] = None
    parallel: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None, about("sequences that a text model runs at once")
    ] = None
    threads: Annotated[Count | None, about("engine threads")] = None
    batch: Annotated[Count | None, about("most tokens in one engine step")] = None
    chunk: Annotated[
        Count | None,
        about(
            "prefill tokens in a step beside sequences that are past their first token; fewer, and of equal time, far "
            "into a long prompt"
        ),
    ] = None
    kv_layout: Annotated[
        Literal["streams", "unified"] | None,
        about("KV cache: a stream for each sequence, or one pool for all"),
    ] = None
    kv_type: Annotated[Literal["f32", "f16", "q8_0"] | None, about("number format of the KV cache")] = None
    gpu_layers: Annotated[
        Annotated[int, Meta(ge=-1)] | None, about("layers on the GPU; -1 = all of them")
    ] = None
    flash_attention: Annotated[bool | None, about("fused attention kernels")] = None
    together: Annotated[
        Count | None, about("from how many sequences on their next tokens share a graph; empty = measured")
    ] = None
    backend_sampling: Annotated[bool | None, about("sample inside the compute graph where possible")] = None
    speculation: Annotated[
        Literal["none", "lookup", "draft"] | None,
        about(
            "guess tokens and check several at once: lookup by what repeats in prompt and answer, draft by a second "
            "model too; empty = lookup for a request alone where a token takes 5 ms or more and it is measured to gain"
        ),
    ] = None
    draft: Annotated[
        str | None,
        about("small model of the same family, by id or path, that drafts for the one model served"),
    ] = None
    guesses: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        about("tokens that are guessed at once; empty = as many as the machine was measured to gain by"),
    ] = None
    mmproj: Annotated[
        Path | None, about("image encoder of the one model served; else one that lies beside its file")
    ] = None
    allow_remote_media: Annotated[
        bool, about("fetch images that are given by address; never from addresses that are not public")
    ] = False

    ledger_sync: Annotated[
        Literal["normal", "full"],
        about("normal survives kill -9; full a loss of power too, with a log of 160 MiB while it serves"),
    ] = "normal"
    idempotency_hours: Annotated[
        Interval, about("hours for which an Idempotency-Key is known and its answer kept")
    ] = 24
    idempotency_max_bytes: Annotated[
        Annotated[int, Meta(ge=0)],
        about("largest answer that is kept for a replay; 0 = none is, a retry is a 409"),
    ] = 16 * 1024 * 1024
    idempotency_total_bytes: Annotated[
        Count, about("bytes of all kept answers together; beyond it the oldest are removed")
    ] = 1024 * 1024 * 1024
    outputs_hours: Annotated[
        Interval, about("hours for which an image that was answered by url can be had there")
    ] = 24
    default_price_usd: Annotated[
        Decimal, about("price of a request to a local file that has no entry in models.toml")
    ] = Decimal("0.0010")

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], about("least severe message that is logged")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], about("form of the log lines")] = "text"

    def __post_init__(self) -> None:
        micros = self.default_price_usd * 1_000_000
        if not micros.is_finite() or micros < 0 or micros != micros.to_integral_value():
            raise ValueError("default_price_usd must be a whole number of micro-dollars, such as 0.0010")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} in cors_origins is no web origin; write it as a browser does, in lower case and "
                    "without a path: http://localhost:3000"
                )
        if self.auth == "never" and not self.loopback:
            raise ValueError(f"auth never is for loopback only, and {self.host} is not; use auth = auto")

    @property
    def loopback(self) -> bool:
        """Whether the bind address is reachable from this machine only."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def default_price_micros(self) -> int:
        """`default_price_usd` in micro-dollars."""
        return int(self.default_price_usd * 1_000_000)

    @property
    def ledger_path(self) -> Path:
        """The SQLite file with keys and ledger rows."""
        return self.home / "ledger.db"

    @property
    def locks_dir(self) -> Path:
        """One lock file for each living instance."""
        return self.home / "locks"

    @property
    def manifests_dir(self) -> Path:
        """One JSON file for each pulled model."""
        return self.home / "manifests"

    @property
    def replays_dir(self) -> Path:
        """One file for each answer that is kept under an Idempotency-Key."""
        return self.home / "replays"

    @property
    def serve_file(self) -> Path:
        """Written by a running `serve`, mode 0600: address, process id, admin token."""
        return self.home / "serve.json"

    @property
    def user_models_toml(self) -> Path:
        """The user's catalogue, laid over the shipped one."""
        return self.config.parent / "models.toml"

    @property
    def uploads_dir(self) -> Path:
        """A folder for each living instance, with the files of its running requests."""
        return self.home / "uploads"

    @property
    def outputs_dir(self) -> Path:
        """One file for each image that an answer told the address of."""
        return self.home / "outputs"

    @property
    def chat_history(self) -> Path:
        """The questions of `oxlo chat --history`."""
        return self.home / "chat_history"

    @property
    def content_paths(self) -> tuple[Path, ...]:
        """What may hold the words of users: `oxlo purge` removes these, and nothing else of ours may hold any."""
        return (self.outputs_dir, self.uploads_dir, self.replays_dir, self.chat_history)

    def make_home(self) -> None:
        """Create the data folder, for this user's eyes only.

        Raises BadRequest when it cannot be made.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.locks_dir.mkdir(exist_ok=True, mode=0o700)
            self.manifests_dir.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise BadRequest(
                f"cannot use the data folder {self.home}: {error.strerror}; set OXLO_HOME"
            ) from error


class Setting(Struct, frozen=True):
    """One setting as data. `type` is what `msgspec.convert` takes; `default` is None where it is found out later."""

    name: str
    type: Any
    default: object
    help: str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "OXLO_" + self.name.upper()

    @property
    def flag(self) -> str:
        """Its flag of `oxlo serve`."""
        return "--" + self.name.replace("_", "-")

    @property
    def kind(self) -> str:
        """Its type in words, for people."""
        base, _ = plain(self.type)
        if get_origin(base) is Literal:
            return " | ".join(get_args(base))
        if get_origin(base) is list:
            return "list of texts"
        return {
            int: "integer",
            float: "number",
            bool: "true | false",
            Decimal: "US dollars",
            Path: "path",
        }.get(base, "text")

    def convert(self, value: object) -> object:
        """The value as the field's type, from text too. Raises ValueError, which says what is expected."""
        base, _ = plain(self.type)
        if isinstance(value, str) and get_origin(base) is list:
            value = [part.strip() for part in value.split(",") if part.strip()]
        if base is Path and isinstance(value, str | Path):
            return Path(value).expanduser().absolute()
        if base is Decimal and isinstance(value, int):
            value = str(value)
        try:
            return msgspec.convert(value, self.type, strict=False)
        except msgspec.ValidationError as error:
            reason = str(error).replace("`", "")
            raise ValueError(f"{reason}; it is {self.kind}: {self.help}") from None


def plain(annotation: Any) -> tuple[Any, list[Meta]]:
    """The type below `Annotated` and `| None`, and the constraints met on the way."""
    metas: list[Meta] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *notes = get_args(annotation)
            metas += [note for note in notes if isinstance(note, Meta)]
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(arm for arm in get_args(annotation) if arm is not type(None))
        else:
            return annotation, metas


def _listed() -> Iterable[Setting]:
    for field in msgspec.structs.fields(Settings):
        help_text = next(meta.description for meta in plain(field.type)[1] if meta.description)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        yield Setting(field.name, field.type, None if default is msgspec.NODEFAULT else default, help_text)


SETTINGS: tuple[Setting, ...] = tuple(_listed())
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def load(flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. A flag that is None, like a variable that is empty, counts as not given.

    Raises BadRequest, which names the place, for an unknown key, a value of the wrong type, or a file that is
    missing although it was asked for.
    """
    given = _from_flags(flags or {})
    variables = _from_environment(os.environ if environ is None else environ)
    named = given.get("config") or variables.get("config")
    path = Path(str(named.value)) if named else platformdirs.user_config_path("oxlo") / "config.toml"
    path = path.expanduser().absolute()

    values: dict[str, object] = {"home": platformdirs.user_data_path("oxlo"), "config": path}
    for name, found in (_from_file(path, required=named is not None) | variables | given).items():
        try:
            values[name] = _BY_NAME[name].convert(found.value)
        except ValueError as error:
            raise BadRequest(f"{found.place}: {error}", param=name) from None
    try:
        return Settings(**values)  # type: ignore[arg-type]  # each value was converted to its field's type above
    except ValueError as error:
        raise BadRequest(str(error)) from error


class _Found(NamedTuple):
    """A value as it was given, and where: a flag, a variable, a line of the file."""

    value: object
    place: str


def _from_flags(flags: Mapping[str, object]) -> dict[str, _Found]:
    return {name: _Found(value, _BY_NAME[name].flag) for name, value in flags.items() if value is not None}


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Found]:
    known = {setting.variable: setting.name for setting in SETTINGS}
    found: dict[str, _Found] = {}
    for variable, text in environ.items():
        if not variable.startswith("OXLO_") or variable in OTHER_VARIABLES:
            continue
        if variable not in known:
            near = _nearest(variable, [*known, *OTHER_VARIABLES])
            raise BadRequest(f"unknown environment variable {variable}{near}")
        if text:
            found[known[variable]] = _Found(text, variable)
    return found


def _from_file(path: Path, *, required: bool) -> dict[str, _Found]:
    try:
        # Floats stay text until their field is known, so that a price never passes through a binary fraction.
        content = tomllib.loads(path.read_text("utf-8"), parse_float=str)
    except FileNotFoundError:
        if required:
            raise BadRequest(f"there is no configuration file {path}") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadRequest(f"cannot read the configuration file {path}: {error}") from error
    for name in content:
        if name == "config":
            raise BadRequest(f"{path}: config cannot stand in the file that it names; use OXLO_CONFIG")
        if name not in _BY_NAME:
            raise BadRequest(f"{path}: unknown setting {name}{_nearest(name, list(_BY_NAME))}", param=name)
    return {name: _Found(value, f"{path}: {name}") for name, value in content.items()}


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
