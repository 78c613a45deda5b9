"""models.toml -> Model records; a name that a client sends -> the model that answers, or why none does.

The shipped models.toml documents its own form at its top; a user's models.toml, beside config.toml, is laid over it
key by key. Names are looked up exactly, then as an alias, then normalised (`Qwen3_32B` = `qwen-3-32b`). Another model
answers in a model's place only where `fallback` says so, and then with a warning.
"""

import difflib
import importlib.util
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct, field

from oxlo_local import ct2, diffuser, gguf
from oxlo_local.calls import ImageOptions, Sampling, SpeechOptions, TextOptions
from oxlo_local.entry import Build, Embedding, Engine, Kind, Pooling, Price, Shape, Status
from oxlo_local.errors import BadRequest, ModelNotFound, ModelNotLoaded, UnsupportedValue
from oxlo_local.limits import price_of

# The kinds that have an endpoint.
SERVED_KINDS: frozenset[Kind] = frozenset({"chat", "embedding", "rerank", "speech", "image"})
LORA: Kind = "lora"  # no model of its own: named by image models, pulled along with them
# What an engine imports in its worker. The extra that installs it has the engine's name.
EXTRAS: dict[Engine, tuple[str, ...]] = {
    "text": ("llama_cpp",),
    "speech": ("faster_whisper",),
    "image": ("diffusers", "torch"),
}
_PACKAGE = Path(__file__).parent
_MICROS = 1_000_000
_TYPICAL_KV = 65_536  # numbers a token, as in a 14 B model: for models whose shape nobody has written down


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. `id` and `path` are filled in when the catalogue is loaded; the rest is its table in models.toml."""

    id: str = ""
    path: Path | None = None  # of the file, or folder, that is loaded; None = not here

    title: str = ""
    kind: Kind = "chat"
    engine: Engine | None = "text"
    tags: list[str] = []
    note: str = ""
    price_usd: Decimal | None = None  # of one request; None = default_price_usd, filled in at load
    endpoint_prices: dict[str, Decimal] = {}  # where an endpoint has another price
    preload: bool = False
    file: str | None = None  # a file that is simply there: shipped with oxlo, or named by the user
    refused: str | None = None  # why it cannot be had here
    instead: str | None = None  # the nearest model that can; only ever named in messages
    fallback: str | None = None  # the model that answers in its place while it is not here

    repo: str | None = None
    revision: str | None = None
    gated: bool = False
    base_repo: str | None = None
    licence: str | None = None
    default_quant: str | None = None
    files: dict[str, Build] = {}
    mmproj: str | None = None
    vram_gb: float | None = None  # speech and image models: memory in their default number format

    context: int | None = None
    shape: Shape = Shape()
    reasoning: str | None = None
    tool_format: str | None = None
    sampling: dict[str, int | float] = {}
    options: TextOptions = field(default_factory=TextOptions)
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    embedding: Embedding | None = None
    image: ImageOptions = field(default_factory=ImageOptions)
    status: dict[str, Status] = {}  # facts that no stored source confirms; the others are confirmed
    prices: list[Price] = []

    @property
    def display_name(self) -> str:
        """Its name for people."""
        return self.title or self.id

    @property
    def pooled(self) -> bool:
        """Whether a text becomes one vector or score: another engine runs it than one that writes text."""
        return self.kind in ("embedding", "rerank")

    @property
    def companions(self) -> list[str]:
        """The models of the catalogue that this one cannot run without: one that drafts for it, its LoRAs."""
        draft = [] if self.options.draft is None or gguf.is_path(self.options.draft) else [self.options.draft]
        return draft + [lora for lora in (self.image.loras or {}).values() if not diffuser.is_path(lora)]

    @property
    def price_micros(self) -> int:
        """The flat price of one request, in micro-dollars."""
        return micros(self.price_usd or Decimal(0))

    @property
    def price_list(self) -> dict[str, int]:
        """Its prices in micro-dollars, in the form of `limits.price_of`."""
        places = {f"{self.id}@{place}": micros(price) for place, price in self.endpoint_prices.items()}
        return {self.id: self.price_micros, **places}

    def price_at(self, endpoint: str) -> int:
        """The flat price of one unit at an endpoint, in micro-dollars."""
        if not self.endpoint_prices:
            return self.price_micros
        price = price_of(self.price_list, self.id, endpoint)
        return self.price_micros if price is None else price

    @property
    def extra_command(self) -> str:
        """The command that installs what its engine needs."""
        extra = self.engine or "all"
        return f"`OXLO_EXTRAS={extra} scripts/oxlo`, or where pip installed oxlo, install its extra [{extra}]"

    def geometry(self, quant: str | None = None) -> gguf.Geometry:
        """What the text model costs in memory: by its file's header where it is here, else by the catalogue.

        `quant` names a build other than the default one, for a model that is not here. Raises BadRequest when the
        file cannot be read, or when the catalogue has no such build.
        """
        if self.path is not None and quant is None:
            found = gguf.geometry(gguf.read_header(self.path), gguf.size(gguf.whole(self.path)))
            return msgspec.structs.replace(found, pooled=self.pooled)
        quant = quant or self.default_quant
        build = self.files.get(quant or "")
        if build is None:
            known = f"; known are {', '.join(self.files)}" if self.files else ""
            raise BadRequest(f"the catalogue has no size of {self.id}:{quant}{known}")
        shape, context = self.shape, self.context or 0
        if not (shape.layers and shape.kv_heads and shape.head_dim):
            return gguf.Geometry(
                weights=build.bytes,
                layers=48,
                kv_per_token=_TYPICAL_KV,
                context=context,
                estimated=True,
                pooled=self.pooled,
            )
        # Latent attention (one head, wider than any other) keeps one vector a token, not keys and values.
        vectors = 1 if shape.kv_heads == 1 and shape.head_dim > 512 else 2
        per_layer = vectors * shape.kv_heads * shape.head_dim
        period, window = gguf.usual_window(shape.architecture)
        sliding = sum(gguf.sliding_layers(shape.layers, period))
        return gguf.Geometry(
            weights=build.bytes,
            layers=shape.layers,
            kv_per_token=(shape.layers - sliding) * per_layer,
            window_kv_per_token=sliding * per_layer,
            window=window,
            context=context,
            pooled=self.pooled,
        )


class Resolved(Struct, frozen=True):
    """The model that answers to a name; `warning` where it is not the one that was named."""

    model: Model
    warning: str | None = None


def micros(usd: Decimal) -> int:
    """US dollars as integer micro-dollars. Raises BadRequest for what is negative or finer than that."""
    scaled = usd * _MICROS
    if not scaled.is_finite() or scaled < 0 or scaled != scaled.to_integral_value():
        raise BadRequest(f"a price of {usd} USD is not a whole number of micro-dollars; write it as 0.0010")
    return int(scaled)


def normal(name: str) -> str:
    """A name without case and without the separators between letters and version."""
    dashed = re.sub(r"[_\s]+", "-", name.strip().casefold())
    return re.sub(r"(?<=[a-z])-(?=\d)", "", dashed)


def servable(model: Model) -> None:
    """Check that this program can run the model here.

    Raises UnsupportedValue for a kind that it does not serve yet, ModelNotLoaded when the engine is not installed.
    """
    if model.kind == LORA:
        raise UnsupportedValue(
            f"{model.id} is no model of its own, but low-rank weights for others: name it in the image.loras of one",
            param="model",
        )
    if model.kind not in SERVED_KINDS or model.engine is None:
        served = ", ".join(sorted(SERVED_KINDS))
        raise UnsupportedValue(
            f"{model.id} is of kind {model.kind}; this version of oxlo serves models of kind {served}",
            param="model",
        )
    missing = [module for module in EXTRAS[model.engine] if importlib.util.find_spec(module) is None]
    if missing:
        raise ModelNotLoaded(
            f"{model.id} needs the {model.engine} engine ({', '.join(missing)}), which is not installed: run "
            f"{model.extra_command}"
        )


class Catalogue:
    """All known models and aliases, and which of them are here. `attach` adds a local file while the program runs."""

    def __init__(self, models: Iterable[Model], aliases: Mapping[str, str], default_price: Decimal) -> None:
        self.models = {model.id: model for model in models}
        self.aliases = dict(aliases)
        self._default_price = default_price
        self._normal = {normal(alias): target for alias, target in self.aliases.items()}
        self._normal.update({normal(model_id): model_id for model_id in self.models})

    @classmethod
    def load(
        cls,
        user_toml: Path | None,
        *,
        installed: Mapping[str, Path],
        default_price_usd: Decimal = Decimal("0.0010"),
    ) -> Self:
        """Read the shipped models.toml and the user's, and note which models are here.

        `installed` maps the ids of pulled models to the file that is loaded. Raises BadRequest, which names the file
        and the place, for an unknown key (with the nearest one), a wrong value or an alias of nothing.
        """
        tables, aliases = _read_file(shipped_toml(), files_in=_PACKAGE)
        if user_toml is not None and user_toml.exists():
            own_tables, own_aliases = _read_file(user_toml, files_in=user_toml.parent)
            _lay_over(tables, own_tables, user_toml)
            aliases |= own_aliases
        models = [_model(model_id, table, installed, default_price_usd) for model_id, table in tables.items()]
        models += [
            _pulled_model(model_id, path, default_price_usd)
            for model_id, path in installed.items()
            if model_id not in tables
        ]
        catalogue = cls(models, aliases, default_price_usd)
        catalogue._check_targets(user_toml)
        return catalogue

    def _check_targets(self, user_toml: Path | None) -> None:
        named = [(f"[aliases] {alias}", target) for alias, target in self.aliases.items()]
        for model in self.models.values():
            named += [(f"[models.{model.id}] fallback", model.fallback)] if model.fallback else []
            named += [(f"[models.{model.id}] instead", model.instead)] if model.instead else []
            named += [(f"[models.{model.id}] draft or loras", companion) for companion in model.companions]
        for place, target in named:
            if target not in self.models:
                file = user_toml or "models.toml"
                raise BadRequest(f"{file}: {place} = {target!r}: no such model{self._near(target)}")

    def find(self, name: str) -> Model:
        """The known model of that name, here or not. Raises ModelNotFound with the nearest names."""
        model_id = self._id(name)
        if model_id is None and name.startswith("hf:"):
            raise ModelNotFound(
                f"{name} is a repository; `oxlo pull {name}` fetches it and says its name here", param="model"
            )
        if model_id is None:
            near = self._near(name)
            rest = f"{near} " if near else "; "
            raise ModelNotFound(
                f"no model {name!r}{rest}`oxlo list --all` shows every known one", param="model"
            )
        return self.models[model_id]

    def resolve(self, name: str) -> Resolved:
        """The model that answers to `name`, which is here.

        Raises ModelNotFound: with the nearest names for an unknown one, with `oxlo pull NAME` for one that is not
        here, with the reason for one that cannot be had.
        """
        model = self.find(name)
        if model.path is not None:
            return Resolved(model)
        if model.fallback is not None:
            other = self.models[model.fallback]
            if other.path is not None:
                return Resolved(other, f"{model.id} is not here; {other.id} answers in its place")
        raise ModelNotFound(self._absence(model), param="model")

    def here(self) -> list[Model]:
        """Embedded, pulled and attached models, by id."""
        return sorted((model for model in self.models.values() if model.path is not None), key=lambda m: m.id)

    def attach(self, path: Path) -> Model:
        """Add a local GGUF file, or a speech or image model, under its own name; the same one twice is one model.

        Raises BadRequest when it is neither, or when its name is already another model's.
        """
        path = Path(os.path.expanduser(path)).absolute()
        path = path if path.is_dir() or path.suffix == diffuser.WEIGHTS else gguf.whole(path)[0]
        model = local_model(file_id(path), path, self._default_price)
        known = self.models.get(model.id)
        if known is not None and known.path == path:
            return known
        if known is not None:
            raise BadRequest(
                f"{path}: {model.id} is a model of the catalogue already; rename it, or give it an entry with "
                "file = ... in your models.toml"
            )
        self.models[model.id] = model
        self._normal.setdefault(normal(model.id), model.id)
        return model

    def _id(self, name: str) -> str | None:
        if name in self.models:
            return name
        return self.aliases.get(name) or self._normal.get(normal(name))

    def _near(self, name: str) -> str:
        names = {normal(known): known for known in (*self.aliases, *self.models)}
        near = difflib.get_close_matches(normal(name), names, n=3, cutoff=0.6)
        return f"; did you mean {' or '.join(names[match] for match in near)}?" if near else ""

    def _absence(self, model: Model) -> str:
        if model.refused is not None:
            hint = f"; the nearest that can be is {model.instead}" if model.instead else ""
            return f"{model.id} cannot be served here: {model.refused}{hint}"
        if model.file is not None:
            return f"the file of {model.id} is missing: {model.file}"
        but = (
            ""
            if model.kind in SERVED_KINDS | {LORA}
            else f", but this version of oxlo does not serve {model.kind} yet"
        )
        return f"{model.id} is not here; `oxlo pull {model.id}` fetches it{but}"


# -- reading models.toml ----------------------------------------------------------------------------------------------


def shipped_toml() -> Path:
    """Where the shipped models.toml is: inside an installed package, or at the top of a checkout."""
    inside = _PACKAGE / "models.toml"
    return inside if inside.exists() else _PACKAGE.parent / "models.toml"


def file_id(path: Path) -> str:
    """The model id of a local file: its name without the ending and the part number."""
    return gguf.SPLIT.sub("", path.name).removesuffix(".gguf").removesuffix(diffuser.WEIGHTS)


def local_model(model_id: str, path: Path, price: Decimal) -> Model:
    """The model of a file, or of a folder, that no models.toml mentions; what it is stands in it."""
    if (path / diffuser.INDEX).is_file() or path.suffix in {diffuser.WEIGHTS, *diffuser.PICKLED}:
        diffuser.files(path)
        return Model(id=model_id, path=path, kind="image", engine="image", price_usd=price)
    if path.is_dir():
        ct2.files(path)
        return Model(id=model_id, path=path, kind="speech", engine="speech", price_usd=price)
    header = gguf.read_header(path)
    title = header.values.get("general.name", "")
    kind, embedding = kind_of(header), _embedding_of(header)
    return Model(
        id=model_id,
        path=path,
        title=str(title),
        kind=kind,
        price_usd=price,
        context=header.number("context_length", 0) or None,
        embedding=embedding,
    )


def _pulled_model(model_id: str, path: Path, price: Decimal) -> Model:
    """`local_model`, where a file that has gone bad since it was pulled is one that cannot be had: all else goes on."""
    try:
        return local_model(model_id, path, price)
    except BadRequest as error:
        return Model(
            id=model_id, price_usd=price, refused=f"{error.message}; `oxlo rm {model_id}` forgets it"
        )


def kind_of(header: gguf.Header) -> Kind:
    """What a file without an entry is for. A text model that says how to pool was made into an embedding model."""
    if header.pooling == "rank":
        return "rerank"
    return "embedding" if header.pooling or header.architecture in gguf.ENCODERS else "chat"


def _embedding_of(header: gguf.Header) -> Embedding | None:
    if kind_of(header) != "embedding" or header.pooling is None:
        return None
    width = header.number("embedding_length_out", header.number("embedding_length", 0))
    return Embedding(dimensions=width, pooling=msgspec.convert(header.pooling, Pooling))


Table = dict[str, object]

_TOP = ("schema", "models", "aliases")
# Laid over key by key, not as a whole.
_MERGED = frozenset({"sampling", "options", "speech", "image", "files", "shape", "status", "endpoint_prices"})
_INNER: dict[str, type[Struct]] = {
    "sampling": Sampling,
    "options": TextOptions,
    "speech": SpeechOptions,
    "shape": Shape,
    "embedding": Embedding,
    "image": ImageOptions,
}
_FILLED_IN = ("id", "path")
_KEYS = tuple(name for name in Model.__struct_fields__ if name not in _FILLED_IN)


def _read_file(path: Path, *, files_in: Path) -> tuple[dict[str, Table], dict[str, str]]:
    """The model tables and the aliases of one file, with every key known and every value of its type.

    A relative `file`, `config` or LoRA is looked for in `files_in`.
    """
    try:
        content: Table = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadRequest(f"cannot read {path}: {error}") from error
    _known(content, _TOP, f"{path}: ")
    try:
        tables = msgspec.convert(content.get("models", {}), dict[str, dict[str, object]])
        aliases = msgspec.convert(content.get("aliases", {}), dict[str, str])
    except msgspec.ValidationError as error:
        raise BadRequest(f"{path}: {str(error).replace('`', '')}") from error
    for model_id, table in tables.items():
        _check(table, f"{path}: [models.{model_id}] ")
        _place(table, ("file",), files_in)
        if isinstance(image := table.get("image"), dict):
            _place(image, ("config",), files_in)
            if isinstance(loras := image.get("loras"), dict):
                _place(loras, [name for name, file in loras.items() if diffuser.is_path(str(file))], files_in)
    return tables, aliases


def _place(table: Table, names: Iterable[str], folder: Path) -> None:
    """Make relative paths absolute, in place."""
    for name in names:
        if isinstance(path := table.get(name), str):
            table[name] = str(folder / Path(path).expanduser())


def _check(table: Table, place: str) -> None:
    _known(table, _KEYS, place)
    for name, inner in _INNER.items():
        _known(table.get(name), inner.__struct_fields__, f"{place}{name}: ")
    listed = table.get("prices")
    for price in listed if isinstance(listed, list) else ():
        _known(price, Price.__struct_fields__, f"{place}prices: ")
    builds = table.get("files")
    for quant, build in builds.items() if isinstance(builds, dict) else ():
        _known(build, Build.__struct_fields__, f"{place}files.{quant}: ")
    try:
        model = msgspec.convert(table, Model)
        msgspec.convert(table.get("sampling", {}), Sampling)
        for price in (model.price_usd, *model.endpoint_prices.values()):
            if price is not None:
                micros(price)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{place}{str(error).replace('`', '')}") from error
    except BadRequest as error:
        raise BadRequest(f"{place}price_usd: {error.message}") from error


def _known(table: object, keys: Iterable[str], place: str) -> None:
    known = tuple(keys)
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            raise BadRequest(f"{place}unknown key {key!r}{hint}")


def _lay_over(tables: dict[str, Table], own: Mapping[str, Table], path: Path) -> None:
    """Lay the user's tables over the shipped ones, in place."""
    by_normal = {normal(model_id): model_id for model_id in tables}
    for model_id, table in own.items():
        twin = by_normal.get(normal(model_id), model_id)
        if twin != model_id:
            raise BadRequest(f"{path}: [models.{model_id}]: the catalogue writes this model as {twin}")
        shipped = tables.setdefault(model_id, {})
        for key, value in table.items():
            before = shipped.get(key)
            if key in _MERGED and isinstance(before, dict) and isinstance(value, dict):
                shipped[key] = {**before, **value}
            else:
                shipped[key] = value


def _model(model_id: str, table: Table, installed: Mapping[str, Path], default_price: Decimal) -> Model:
    model = msgspec.convert(table, Model)
    path = installed.get(model_id)
    if model.file is not None and Path(model.file).exists():
        path = Path(model.file)
    return msgspec.structs.replace(
        model,
        id=model_id,
        path=path,
        price_usd=default_price if model.price_usd is None else model.price_usd,
    )
