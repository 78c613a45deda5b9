"""Which models a server starts, and with what options: the names given, or what is marked, measured against memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import msgspec

from oxlo_local import diffuser, fit, gguf, mmproj
from oxlo_local.calls import EmbeddingOptions, ImageOptions, SpeechOptions, TextOptions
from oxlo_local.catalogue import Catalogue, Model, local_model, servable
from oxlo_local.config import Settings
from oxlo_local.errors import BadRequest, OxloError, UnsupportedValue
from oxlo_local.hardware import Machine
from oxlo_local.workers.supervisor import WorkerSpec

DEMO = "oxlo-demo"
DEMO_TAG = "demo"
UNSAID = 512  # pixels of a side, for image models of which no size is known before they are loaded


@dataclass(frozen=True)
class Lineup:
    """What a server runs: the models that it waits for, demos that start behind them, and why others do not."""

    models: list[WorkerSpec]
    behind: list[WorkerSpec]
    left_out: list[str]


def line_up(catalogue: Catalogue, names: Sequence[str], settings: Settings, machine: Machine) -> Lineup:
    """What a server runs that was given these names. Raises what `chosen` and `specs` raise."""
    models = chosen(catalogue, names)
    found, machine = _placed(models, settings, machine, catalogue)
    lineup = Lineup(found, [], [])
    for demo in () if names or not settings.demos else demos(catalogue, models):
        try:
            servable(demo)
            spec, machine = _spec(demo, settings, machine, catalogue)
        except OxloError as error:
            lineup.left_out.append(f"left out: {error.message}")
        else:
            lineup.behind.append(replace(spec, counts_for_ready=False))
    return lineup


def demos(catalogue: Catalogue, models: Sequence[Model]) -> list[Model]:
    """The embedded models of the kinds that are not among `models`, the smallest first."""
    kinds = {model.kind for model in models}
    found = [model for model in catalogue.here() if DEMO_TAG in model.tags and model.kind not in kinds]
    return sorted(found, key=lambda model: _bytes(model.path))


def _bytes(path: Path | None) -> int:
    """What a model's files take, in a folder or alone."""
    if path is None or not path.exists():
        return 0
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def chosen(catalogue: Catalogue, names: Sequence[str]) -> list[Model]:
    """The models to start: `names` (ids, aliases, paths), else those here and marked `preload`, else the demo.

    A path is attached to the catalogue. Raises ModelNotFound for what is not here, BadRequest for a bad file,
    UnsupportedValue and ModelNotLoaded for what this installation cannot run.
    """
    if names:
        found = [
            catalogue.attach(Path(name)) if gguf.is_path(name) else catalogue.resolve(name).model
            for name in names
        ]
    else:
        found = [model for model in catalogue.here() if model.preload] or [catalogue.resolve(DEMO).model]
    once = {model.id: model for model in found}
    for model in once.values():
        servable(model)
    return list(once.values())


def specs(
    models: Sequence[Model], settings: Settings, machine: Machine, catalogue: Catalogue
) -> list[WorkerSpec]:
    """How to run them side by side on this machine.

    Raises ModelDoesNotFit with the sum for the first that cannot, BadRequest for an image encoder that is none,
    ModelNotFound for a draft model or a LoRA that is not here.
    """
    return _placed(models, settings, machine, catalogue)[0]


def _placed(
    models: Sequence[Model], settings: Settings, machine: Machine, catalogue: Catalogue
) -> tuple[list[WorkerSpec], Machine]:
    """How to run them, and what is left of the machine then."""
    if settings.mmproj is not None and len(models) > 1:
        raise BadRequest("--mmproj is the image encoder of one model; serve that one alone", param="mmproj")
    if settings.draft is not None and len(models) > 1:
        raise BadRequest("--draft is the draft model of one model; serve that one alone", param="draft")
    found = []
    for model in models:
        spec, machine = _spec(model, settings, machine, catalogue)
        found.append(spec)
    return found, machine


def _spec(
    model: Model, settings: Settings, machine: Machine, catalogue: Catalogue
) -> tuple[WorkerSpec, Machine]:
    """How to run one, and what is left of the machine beside it."""
    if model.engine == "speech" and model.path is not None:
        spoken = speech(model, settings)
        weights = _bytes(model.path)
        room = fit.speech(model.id, weights, model.vram_gb, machine, spoken)
        spec = WorkerSpec(model.id, model.engine, str(model.path), room.options(spoken))
        return spec, fit.less(machine, room)
    if model.engine == "image" and model.path is not None:
        drawn = image(model, settings, catalogue)
        planned = image_plan(model, machine, drawn)
        spec = WorkerSpec(model.id, model.engine, str(model.path), planned.options(drawn))
        return spec, fit.less(machine, planned)
    if model.engine != "text" or model.path is None:
        raise UnsupportedValue(f"{model.id} cannot be started: its engine is {model.engine}", param="model")
    given = laid_over(model.options, settings)
    eye = _eye_of(model, given)
    given = msgspec.structs.replace(given, mmproj=None if eye is None else str(eye))
    draft = _draft_of(model, given, catalogue)
    given = msgspec.structs.replace(given, draft=None if draft is None else str(draft.path))
    geometry = msgspec.structs.replace(
        model.geometry(),
        eye=0 if eye is None else eye.stat().st_size,
        draft=None if draft is None else draft.geometry(),
    )
    plan = fit.plan(model.id, geometry, machine, given)
    options = plan.options(given)
    if model.pooled:
        spec = WorkerSpec(model.id, "embedding", str(model.path), pooled(model, options))
    else:
        spec = WorkerSpec(model.id, model.engine, str(model.path), options)
    return spec, fit.less(machine, plan)


def sees(model: Model) -> bool:
    """Whether a model that is here would take images, were it started."""
    return _eye_of(model, model.options) is not None


def _eye_of(model: Model, options: TextOptions) -> Path | None:
    """The image encoder that a model runs with: the one named, else what lies beside its file and is its own."""
    if model.pooled or model.engine != "text" or model.path is None:
        return None
    if options.mmproj is not None:
        return mmproj.checked(Path(options.mmproj))
    return mmproj.beside(model.path, model.mmproj)


def _draft_of(model: Model, options: TextOptions, catalogue: Catalogue) -> Model | None:
    """The model that drafts for another: the catalogue's, or a file."""
    if options.draft is None or options.speculation in ("none", "lookup") or model.pooled:
        if options.speculation == "draft" and not model.pooled:
            raise BadRequest(
                f"speculation = draft of {model.id} needs the option draft: a model", param="draft"
            )
        return None
    if gguf.is_path(options.draft):
        path = Path(options.draft).expanduser().absolute()
        return local_model(path.stem, path, Decimal(0))
    return catalogue.resolve(options.draft).model


def pooled(model: Model, options: TextOptions) -> EmbeddingOptions:
    """What the embedding engine has to know of a model and of the options for it."""
    return EmbeddingOptions(
        ctx=options.ctx,
        batch=options.batch,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        flash_attention=options.flash_attention,
        pooling=model.embedding.pooling if model.embedding is not None else None,
    )


def speech(model: Model, settings: Settings) -> SpeechOptions:
    """A speech model's own options with what the settings say on top."""
    own = model.speech
    return msgspec.structs.replace(
        own,
        threads=settings.threads or own.threads,
        parallel=settings.parallel or own.parallel,
        device="cpu" if settings.gpu_layers == 0 else own.device,
    )


def image(model: Model, settings: Settings, catalogue: Catalogue) -> ImageOptions:
    """An image model's own options with what the settings say on top, and where its LoRAs lie."""
    own = model.image
    files = {
        name: lora if diffuser.is_path(lora) else str(catalogue.resolve(lora).model.path)
        for name, lora in (own.loras or {}).items()
    }
    return msgspec.structs.replace(
        own,
        loras=files or None,
        threads=settings.threads or own.threads,
        device="cpu" if settings.gpu_layers == 0 else own.device,
    )


def image_plan(model: Model, machine: Machine, options: ImageOptions) -> fit.ImagePlan:
    """How an image model that is here is run. Raises ModelDoesNotFit, BadRequest for files that are none."""
    assert model.path is not None
    sizes = options.sizes or [(UNSAID, UNSAID)]
    pixels = max(width * height for width, height in sizes)
    return fit.image(model.id, diffuser.sizes(model.path), pixels, machine, options)


def laid_over(options: TextOptions, settings: Settings) -> TextOptions:
    """A model's own options with what the settings say on top."""
    given = {name: getattr(settings, name, None) for name in TextOptions.__struct_fields__}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return msgspec.structs.replace(
        options, **{name: value for name, value in given.items() if value is not None}
    )
