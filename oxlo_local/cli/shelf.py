"""What `list`, `show`, `rm` and `plan` do and print; `pulling.py` beside it has `pull`."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.table import Table

from oxlo_local import gguf, lineup
from oxlo_local.calls import TextOptions
from oxlo_local.catalogue import Catalogue, Model
from oxlo_local.cli.sheet import console
from oxlo_local.client import Client, locate
from oxlo_local.config import Settings, load
from oxlo_local.errors import BadRequest, ModelDoesNotFit, ModelNotFound, OxloError
from oxlo_local.fit import ImagePlan, Plan, gigabytes
from oxlo_local.fit import plan as planned
from oxlo_local.hardware import Machine, probe
from oxlo_local.protocol.models import ModelItem, Status
from oxlo_local.store import Store
from oxlo_local.transcript import printable

_STATUS: dict[str, Status] = {"ready": "ready", "loading": "loading", "failed": "failed"}


def opened(settings: Settings) -> tuple[Store, Catalogue]:
    """The manifests, and the catalogue that knows what they say is here."""
    store = Store(settings)
    catalogue = Catalogue.load(
        settings.user_models_toml, installed=store.installed(), default_price_usd=settings.default_price_usd
    )
    return store, catalogue


# -- list, show -------------------------------------------------------------------------------------------------------


def list_models(*, everything: bool, as_json: bool) -> None:
    """Print the models that are here, or all known ones."""
    settings = load()
    _, catalogue = opened(settings)
    running = _running(settings)
    models = sorted(catalogue.models.values(), key=lambda model: model.id) if everything else catalogue.here()
    items = [_item(model, running.get(model.id)) for model in models]
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(items), indent=2).decode())
        return
    table = Table(box=None, pad_edge=False)
    for head in ("model", "kind", "status", "name"):
        table.add_column(head, no_wrap=head != "name")
    for head in ("context", "price"):
        table.add_column(head, justify="right", no_wrap=True)
    for model, item in zip(models, items, strict=True):
        status: str = item.status if model.path is not None else "refused" if model.refused else "not here"
        context = f"{item.context_length:,}" if item.context_length else "-"
        name = printable(model.display_name)
        table.add_row(printable(model.id), model.kind, status, name, context, f"${item.price_usd:.4f}")
    console().print(table, markup=False)


def show(name: str, *, as_json: bool) -> None:
    """Print the model's record and manifest."""
    store, catalogue = opened(load())
    model = catalogue.find(name)
    manifest = store.manifest(model.id)
    aliases = sorted(alias for alias, target in catalogue.aliases.items() if target == model.id)
    if as_json:
        record = {**_plain(model), "aliases": aliases, "manifest": _plain(manifest) if manifest else None}
        print(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for key, text in _facts(model, aliases):
        mark = f" ({model.status[key]})" if key in model.status else ""
        table.add_row(key.replace("_", " "), printable(text + mark))
    for quant, build in model.files.items():
        marks = "" if build.exact else "about "
        doubt = "" if build.status == "confirmed" else f" ({build.status})"
        parts = "" if len(build.files) == 1 else f" in {len(build.files)} files"
        usual = " (default)" if quant == model.default_quant else ""
        table.add_row(f"build {quant}", f"{marks}{gigabytes(build.bytes)}{parts}{doubt}{usual}")
    for price in model.prices:
        table.add_row(f"at {price.provider}", _price(price))
    if manifest is not None:
        pinned = f"{manifest.repo} at {manifest.revision}" if manifest.repo else "a local file"
        table.add_row("pulled", f"{manifest.pulled}: {manifest.quant or ''} {pinned}")
    console().print(table, markup=False)


def _facts(model: Model, aliases: list[str]) -> Iterator[tuple[str, str]]:
    """The model's plain facts in the order in which they are asked for."""
    yield "id", model.id
    yield "name", model.display_name
    yield "here", str(model.path) if model.path else model.refused or f"no; oxlo pull {model.id}"
    plain = _plain(model)
    for key in (
        "kind", "engine", "tags", "price_usd", "repo", "revision", "gated", "base_repo", "licence", "context", "shape",
        "reasoning", "tool_format", "sampling", "options", "embedding", "image", "vram_gb", "mmproj", "fallback",
        "instead", "note",
    ):  # fmt: skip
        value = plain.get(key)
        if isinstance(value, dict):
            known = ((name, inner) for name, inner in value.items() if inner is not None and name != "type")
            value = ", ".join(f"{name} {inner}" for name, inner in known)
        if isinstance(value, list):
            value = ", ".join(str(inner) for inner in value)
        if value not in (None, "", False):
            yield key, f"{value:,}" if isinstance(value, int) and key == "context" else str(value)
    if aliases:
        yield "aliases", ", ".join(aliases)


def _price(price: Struct) -> str:
    known = _plain(price)
    amounts = [
        f"${known[key]} {words}"
        for key, words in (
            ("input_per_mtok", "per million tokens in"),
            ("output_per_mtok", "out"),
            ("per_audio_minute", "per minute"),
            ("per_image", "per image"),
            ("per_mchar", "per million characters"),
        )
        if known.get(key) is not None
    ]
    like = "" if known["match"] == "exact" else ", the nearest it has"
    return f"{', '.join(amounts)} ({known['model']}{like}; {known['date']}, {known['source']})"


# -- rm, plan ---------------------------------------------------------------------------------------------------------


def rm(name: str, *, force: bool, as_json: bool) -> None:
    """Delete a model unless a server runs it."""
    settings = load()
    store, catalogue = opened(settings)
    try:
        model_id = catalogue.find(name).id
    except ModelNotFound:
        model_id = name
    pulled = store.manifest(model_id) is not None or store.unfinished(model_id)
    model = catalogue.models.get(model_id)
    if not pulled and model is not None and model.path is not None:
        raise BadRequest(f"{model_id} was not pulled: its file {model.path} is not oxlo's to delete")
    status = _running(settings).get(model_id)
    if status not in (None, "stopped", "failed") and not force:
        raise BadRequest(f"{model_id} is {status} in a running server; stop it first, or use --force")
    freed = store.remove(model_id)
    if as_json:
        print(msgspec.json.encode({"model": model_id, "freed": freed}).decode())
    else:
        print(f"{model_id} is removed, {gigabytes(freed)} freed")


def plan(name: str, options: TextOptions, *, as_json: bool) -> None:
    """Print how a model would run here. Raises ModelDoesNotFit."""
    settings = load()
    _, catalogue = opened(settings)
    machine = probe()
    if gguf.is_path(name):
        model, quant = catalogue.attach(Path(name)), ""
    else:
        name, _, quant = (name, "", "") if name.startswith("hf:") else name.partition(":")
        model = catalogue.find(name)
    if model.engine == "image" and model.path is not None:
        _print_plan(lineup.image_plan(model, machine, model.image), machine, as_json=as_json)
        return
    if model.engine != "text" or (model.path is None and not model.files):
        _print_fixed(model, machine, as_json=as_json)
        return
    label = f"{model.id}:{quant}" if quant else model.id
    build = next((known for known in model.files if known.lower() == quant.lower()), quant) or None
    given = msgspec.structs.replace(model.options, **_given(options))
    try:
        found = planned(label, model.geometry(build), machine, given)
    except ModelDoesNotFit as error:
        if as_json:
            print(msgspec.json.encode({"model": model.id, "fits": False, "reason": error.message}).decode())
        raise
    _print_plan(found, machine, as_json=as_json)
    if as_json:
        return
    if found.estimated:
        print("The catalogue does not know this model's shape: its KV cache is an estimate.")
    if model.refused is not None:
        print(f"But it cannot be pulled by name: {model.refused}")


def _print_plan(found: Plan | ImagePlan, machine: Machine, *, as_json: bool) -> None:
    if as_json:
        answer = {**_plain(found), "fits": True, "total": found.total, "machine": _plain(machine)}
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
        return
    print(f"{found.model} fits {found.placement}")
    print(found.arithmetic)


def _print_fixed(model: Model, machine: Machine, *, as_json: bool) -> None:
    """Models whose memory the catalogue states as one number."""
    if model.vram_gb is None:
        raise ModelNotFound(
            model.refused or f"nothing is known of the memory that {model.id} needs", param="model"
        )
    need = int(Decimal(str(model.vram_gb)) * 1_000_000_000)
    have = max(machine.vram_free, machine.ram_available or 0)
    reason = f"{model.id} needs about {gigabytes(need)} of GPU memory or RAM; free are {gigabytes(have)}"
    if as_json:
        print(msgspec.json.encode({"model": model.id, "fits": need <= have, "reason": reason}).decode())
    if need > have:
        raise ModelDoesNotFit(reason, param="model")
    if not as_json:
        print(reason)


# -- shared -----------------------------------------------------------------------------------------------------------


def _running(settings: Settings) -> dict[str, Status]:
    """What the server of this OXLO_HOME says of its models; nothing when none answers."""
    try:
        with Client(locate(settings.serve_file)) as client:
            return {model.id: _STATUS.get(model.status, "stopped") for model in client.models()}
    except OxloError:
        return {}


def _item(model: Model, status: Status | None) -> ModelItem:
    return ModelItem(
        id=model.id,
        created=int(model.path.stat().st_mtime) if model.path is not None else 0,
        owned_by=model.repo.partition("/")[0] if model.repo else "oxlo-local",
        kind=model.kind,
        status=status or "stopped",
        context_length=model.context,
        price_usd=model.price_micros / 1_000_000,
        display_name=model.display_name,
        vision=model.path is not None and lineup.sees(model),
    )


def _plain(record: Struct) -> dict[str, object]:
    """A record as JSON would have it."""
    found = msgspec.to_builtins(record, str_keys=True, enc_hook=str)
    return dict(found)


def _given(options: TextOptions) -> dict[str, object]:
    """The options that were named."""
    return {name: value for name, value in msgspec.structs.asdict(options).items() if value is not None}
