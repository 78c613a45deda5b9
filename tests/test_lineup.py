"""Which models are started, and with what options."""

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from oxlo_local import config, fit, random_diffuser
from oxlo_local.calls import EmbeddingOptions, ImageOptions, SpeechOptions, TextOptions
from oxlo_local.catalogue import EXTRAS, Catalogue, Model
from oxlo_local.config import Settings
from oxlo_local.entry import Embedding
from oxlo_local.errors import BadRequest, ModelDoesNotFit, ModelNotFound, UnsupportedValue
from oxlo_local.hardware import Machine
from oxlo_local.lineup import chosen, laid_over, line_up, specs
from oxlo_local.random_model import Shape, write

PRICE = Decimal("0.001")


@pytest.fixture
def settings(home: Path) -> Settings:
    return config.load({"home": home}, {})


def catalogue(path: Path, *models: Model) -> Catalogue:
    demo = Model(id="oxlo-demo", path=path, price_usd=PRICE)
    return Catalogue([demo, *models], {"demo": "oxlo-demo"}, PRICE)


def known(*models: Model) -> Catalogue:
    return Catalogue(models, {}, PRICE)


def machine(gigabytes: float) -> Machine:
    return Machine(cores=2, ram_total=int(gigabytes * 1e9), ram_available=int(gigabytes * 1e9))


def test_without_names_the_marked_ones_else_the_demo(long_winded: Path) -> None:
    marked = Model(id="m", path=long_winded, price_usd=PRICE, preload=True)
    unmarked = Model(id="u", path=long_winded, price_usd=PRICE)
    away = Model(id="w", price_usd=PRICE, preload=True)
    assert [one.id for one in chosen(catalogue(long_winded, marked, unmarked, away), [])] == ["m"]
    assert [one.id for one in chosen(catalogue(long_winded, unmarked, away), [])] == ["oxlo-demo"]


def test_names_are_ids_aliases_or_files_and_each_model_once(long_winded: Path) -> None:
    known = catalogue(long_winded)
    found = chosen(known, ["demo", str(long_winded), "oxlo-demo", str(long_winded)])
    assert [one.id for one in found] == ["oxlo-demo", "long-winded"]
    assert known.resolve("long-winded").model.path == long_winded


def test_what_is_not_here_or_no_model_is_refused(long_winded: Path, tmp_path: Path) -> None:
    known = catalogue(long_winded, Model(id="voice", kind="tts", engine=None, path=long_winded))
    with pytest.raises(ModelNotFound):
        chosen(known, ["oxlo-dmo"])
    with pytest.raises(BadRequest):
        chosen(known, [str(tmp_path / "nothing.gguf")])
    with pytest.raises(UnsupportedValue, match="tts"):
        chosen(known, ["voice"])


def test_models_share_the_machine_and_the_one_too_many_is_refused_with_the_sum(
    long_winded: Path, settings: Settings
) -> None:
    models = [Model(id=id, path=long_winded, price_usd=PRICE) for id in ("a", "b", "c")]
    first = specs(models[:1], settings, machine(100), known(*models))[0]
    assert (first.engine, first.path, first.counts_for_ready) == ("text", str(long_winded), True)
    assert isinstance(first.options, TextOptions) and first.options.ctx and first.options.parallel
    room = next(size / 20 for size in range(1, 100) if fits(models[:2], settings, size / 20))
    with pytest.raises(ModelDoesNotFit, match="c .*|weights"):
        specs(models, settings, machine(room), known(*models))


def fits(models: list[Model], settings: Settings, gigabytes: float) -> bool:
    try:
        specs(models, settings, machine(gigabytes), known(*models))
    except ModelDoesNotFit:
        return False
    return True


def test_what_makes_vectors_or_scores_runs_on_its_own_engine(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "e.gguf"
    write(path, "bert", Shape(layers=1, context=256), pooling="cls")
    told = Embedding(dimensions=64, pooling="mean")
    models = [
        Model(id="e", kind="embedding", embedding=told, path=path, price_usd=PRICE),
        Model(id="r", kind="rerank", path=path, price_usd=PRICE),
    ]
    first, second = specs(models, settings, machine(100), known(*models))
    assert first.engine == second.engine == "embedding"
    assert isinstance(first.options, EmbeddingOptions) and isinstance(second.options, EmbeddingOptions)
    assert (first.options.pooling, first.options.ctx) == ("mean", 256)
    assert second.options.pooling is None


def test_settings_lie_over_a_model_s_own_options(home: Path) -> None:
    settings = config.load({"home": home, "ctx": 512, "flash_attention": False}, {})
    own = TextOptions(ctx=4096, parallel=3, chat_template="x")
    laid = laid_over(own, settings)
    assert laid == TextOptions(
        ctx=512, parallel=3, chat_template="x", flash_attention=False, allow_remote_media=False
    )
    bare = laid_over(own, config.load({"home": home}, {}))
    assert bare == TextOptions(ctx=4096, parallel=3, chat_template="x", allow_remote_media=False)


def test_every_option_of_an_engine_can_be_set_by_a_setting_but_the_template() -> None:
    names = set(TextOptions.__struct_fields__)
    known = {field.name for field in msgspec.structs.fields(Settings)}
    assert names - known == {"chat_template"}


# -- draft models ---------------------------------------------------------------------------------------------------


def test_a_draft_is_a_model_of_the_catalogue_or_a_file(
    long_winded: Path, settings: Settings, tmp_path: Path
) -> None:
    write(tmp_path / "small.gguf", shape=Shape(layers=1))
    small = Model(id="small", path=tmp_path / "small.gguf", price_usd=PRICE)
    for draft in ("small", str(tmp_path / "small.gguf")):
        large = Model(id="large", path=long_winded, price_usd=PRICE, options=TextOptions(draft=draft))
        (spec,) = specs([large], settings, machine(100), known(large, small))
        assert isinstance(spec.options, TextOptions)
        assert spec.options.draft == str(tmp_path / "small.gguf")
    unused = msgspec.structs.replace(large, options=TextOptions(draft="small", speculation="none"))
    (spec,) = specs([unused], settings, machine(100), known(unused, small))
    assert isinstance(spec.options, TextOptions) and spec.options.draft is None


def test_a_draft_that_is_not_here_is_named(long_winded: Path, settings: Settings, home: Path) -> None:
    away = Model(id="away", price_usd=PRICE)
    large = Model(id="large", path=long_winded, price_usd=PRICE, options=TextOptions(draft="away"))
    with pytest.raises(ModelNotFound, match="oxlo pull away"):
        specs([large], settings, machine(100), known(large, away))
    lost = msgspec.structs.replace(large, options=TextOptions(draft="/nowhere/x.gguf"))
    with pytest.raises(BadRequest, match=r"/nowhere/x\.gguf"):
        specs([lost], settings, machine(100), known(lost))
    none = msgspec.structs.replace(large, options=TextOptions(speculation="draft"))
    with pytest.raises(BadRequest, match="needs the option draft"):
        specs([none], settings, machine(100), known(none))
    given = config.load({"home": home, "draft": "away"}, {})
    with pytest.raises(BadRequest, match="--draft is the draft model of one model"):
        specs([large, away], given, machine(100), known(large, away))


def test_a_draft_counts(long_winded: Path, settings: Settings) -> None:
    large = Model(id="large", path=long_winded, price_usd=PRICE, options=TextOptions(ctx=512, parallel=2))
    drafted = msgspec.structs.replace(
        large, options=msgspec.structs.replace(large.options, draft=str(long_winded))
    )
    need = fit.plan("large", large.geometry(), machine(100), large.options)
    both = int(1.5 * need.total) / 1e9
    assert specs([large], settings, machine(both), known(large))
    with pytest.raises(ModelDoesNotFit, match=r"\+ draft model"):
        specs([drafted], settings, machine(both * 0.7), known(drafted))


def test_loras_are_files_or_models_of_the_catalogue(tmp_path: Path, settings: Settings) -> None:
    folder, file = tmp_path / "drawn", tmp_path / "fast.safetensors"
    random_diffuser.write(folder)
    file.write_bytes(b"")
    fast = Model(id="fast", kind="lora", engine="image", path=file, price_usd=PRICE)
    loras = {"fast": "fast", "ink": "/ink.safetensors"}
    drawn = Model(
        id="drawn",
        kind="image",
        engine="image",
        path=folder,
        price_usd=PRICE,
        image=ImageOptions(loras=loras),
    )
    (spec,) = specs([drawn], settings, machine(100), known(drawn, fast))
    assert isinstance(spec.options, ImageOptions)
    assert spec.options.loras == {"fast": str(file), "ink": "/ink.safetensors"}
    away = msgspec.structs.replace(fast, path=None)
    with pytest.raises(ModelNotFound, match="`oxlo pull fast` fetches it$"):
        specs([drawn], settings, machine(100), known(drawn, away))
    with pytest.raises(UnsupportedValue, match="no model of its own"):
        chosen(known(drawn, fast), ["fast"])


def test_a_speech_model_runs_as_its_entry_and_the_settings_say(tmp_path: Path, home: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x" * 1000)
    own = SpeechOptions(batch=4, threads=3, longest=60.0)
    model = Model(id="w", kind="speech", engine="speech", path=tmp_path, price_usd=PRICE, speech=own)
    (plain,) = specs([model], config.load({"home": home}, {}), machine(4), known(model))
    assert (plain.engine, plain.path) == ("speech", str(tmp_path))
    assert plain.options == msgspec.structs.replace(own, device="cpu")
    told = config.load({"home": home, "threads": 2, "parallel": 6, "gpu_layers": 0}, {})
    (set_,) = specs([model], told, machine(4), known(model))
    assert set_.options == SpeechOptions(batch=4, threads=2, parallel=6, longest=60.0, device="cpu")
    with pytest.raises(ModelDoesNotFit, match="w does not fit"):
        specs([model], told, machine(0.5), known(model))


def test_an_image_model_runs_as_its_entry_and_the_settings_say(tmp_path: Path, home: Path) -> None:
    random_diffuser.write(tmp_path)
    own = ImageOptions(steps=4, sizes=[(64, 64)], threads=3)
    model = Model(id="d", kind="image", engine="image", path=tmp_path, price_usd=PRICE, image=own)
    (plain,) = specs([model], config.load({"home": home}, {}), machine(4), known(model))
    assert (plain.engine, plain.path) == ("image", str(tmp_path))
    assert plain.options == msgspec.structs.replace(own, device="cpu", dtype="float32")
    (told,) = specs([model], config.load({"home": home, "threads": 2}, {}), machine(4), known(model))
    assert isinstance(told.options, ImageOptions) and told.options.threads == 2
    with pytest.raises(ModelDoesNotFit, match=r"d does not fit: weights \d+ MB .* free are 300 MB"):
        specs([model], config.load({"home": home}, {}), machine(0.3), known(model))


# -- the demos behind -----------------------------------------------------------------------------------------------


def with_demos(path: Path, *models: Model) -> Catalogue:
    """The chat demo, and one of each of two other kinds."""
    embedding = Model(id="oxlo-demo-embedding", kind="embedding", path=path, tags=["demo"], price_usd=PRICE)
    rerank = Model(id="oxlo-demo-rerank", kind="rerank", path=path, tags=["demo"], price_usd=PRICE)
    return catalogue(path, embedding, rerank, *models)


def test_demos_of_other_kinds_stand_behind_when_no_model_is_named(
    long_winded: Path, settings: Settings
) -> None:
    lineup = line_up(with_demos(long_winded), [], settings, machine(100))
    assert [spec.model_id for spec in lineup.models] == ["oxlo-demo"]
    assert [spec.model_id for spec in lineup.behind] == ["oxlo-demo-embedding", "oxlo-demo-rerank"]
    assert not any(spec.counts_for_ready for spec in lineup.behind) and lineup.left_out == []
    marked = Model(id="m", kind="embedding", path=long_winded, preload=True, price_usd=PRICE)
    lineup = line_up(with_demos(long_winded, marked), [], settings, machine(100))
    assert [spec.model_id for spec in lineup.models] == ["m"]
    assert [spec.model_id for spec in lineup.behind] == ["oxlo-demo-rerank"]


def test_no_demo_stands_behind_what_was_named_or_where_none_is_wanted(
    long_winded: Path, settings: Settings
) -> None:
    known = with_demos(long_winded)
    assert line_up(known, ["oxlo-demo"], settings, machine(100)).behind == []
    bare = msgspec.structs.replace(settings, demos=False)
    assert line_up(known, [], bare, machine(100)).behind == []


def test_a_demo_that_cannot_run_is_left_out_in_a_line(
    long_winded: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lame = Model(
        id="oxlo-demo-speech",
        kind="speech",
        engine="speech",
        path=long_winded,
        tags=["demo"],
        price_usd=PRICE,
    )
    monkeypatch.setitem(EXTRAS, "speech", ("not_installed_anywhere",))
    room = next(
        size / 20 for size in range(1, 100) if fits(chosen(with_demos(long_winded), []), settings, size / 20)
    )
    lineup = line_up(with_demos(long_winded, lame), [], settings, machine(room))
    assert [spec.model_id for spec in lineup.models] == ["oxlo-demo"] and lineup.behind == []
    assert len(lineup.left_out) == 3 and not any("\n" in line for line in lineup.left_out)
    (line,) = (line for line in lineup.left_out if "speech" in line)
    assert (
        line.startswith("left out: oxlo-demo-speech needs the speech engine") and "OXLO_EXTRAS=speech" in line
    )
