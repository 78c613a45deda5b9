"""The shipped models.toml is what it says it is; names find their models; user files are laid over it."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from oxlo_local import catalogue as room
from oxlo_local.calls import SpeechOptions, TextOptions
from oxlo_local.catalogue import Catalogue, Model, micros, normal, servable, shipped_toml
from oxlo_local.errors import BadRequest, ModelNotFound, ModelNotLoaded, UnsupportedValue
from oxlo_local.random_model import Architecture, Pooling, write
from tests.conftest import ROOT
from tests.hub import gguf_bytes

BRIEF = {
    "qwen-3-32b": "chat",
    "llama-3.3-70b": "chat",
    "deepseek-r1-70b": "chat",
    "deepseek-v3.2": "chat",
    "mistral-7b": "chat",
    "whisper-large-v3": "speech",
    "oxlo-image-pro": "image",
}
SHIPPED = Catalogue.load(None, installed={})
PULLABLE = [model for model in SHIPPED.models.values() if model.repo and not model.refused]


# -- the shipped file -------------------------------------------------------------------------------------------------


def test_every_model_of_the_brief_is_in_it() -> None:
    assert {model_id: SHIPPED.models[model_id].kind for model_id in BRIEF} == BRIEF


def test_every_key_that_its_head_explains_exists_and_the_other_way_round() -> None:
    head = shipped_toml().read_text("utf-8").partition("schema = 1")[0]
    explained: set[str] = set()
    for line in re.findall(r"^#   (\w[\w., ]*?)   ", head, re.MULTILINE):
        explained |= {re.sub(r"\..*", "", key.strip()) for key in line.split(",")}
    assert explained == {name for name in Model.__struct_fields__ if name not in ("id", "path")}


def test_ids_and_aliases_do_not_collide_and_aliases_lead_to_models() -> None:
    normals = [normal(model_id) for model_id in SHIPPED.models]
    assert len(set(normals)) == len(normals)
    for alias, target in SHIPPED.aliases.items():
        assert target in SHIPPED.models
        assert SHIPPED.find(alias).id == target
        assert SHIPPED.models.get(alias) is None, "an alias that is an id would never be asked"


@pytest.mark.parametrize("model", PULLABLE, ids=lambda model: model.id)
def test_what_can_be_pulled_has_a_source_and_builds(model: Model) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.repo or "")
    assert model.revision is None or re.fullmatch(r"[0-9a-f]{40}", model.revision)
    assert model.licence
    assert model.engine is not None
    assert model.default_quant in model.files
    for quant, build in model.files.items():
        assert build.bytes > 1_000_000, quant
        assert build.files, quant
        assert build.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", build.sha256), quant
        if model.engine == "text":
            assert all(name.lower().endswith(".gguf") for name in build.files), quant
    if model.kind in ("speech", "image"):
        assert model.vram_gb, "its memory cannot be read from a GGUF header"
    if model.kind == "embedding":
        assert model.embedding is not None


@pytest.mark.parametrize(
    "model", [model for model in SHIPPED.models.values() if model.refused], ids=lambda model: model.id
)
def test_what_cannot_be_had_says_why(model: Model) -> None:
    assert len(model.refused or "") > 20
    assert model.instead is None or not SHIPPED.models[model.instead].refused


def test_kinds_without_an_engine_only_occur_refused() -> None:
    for model in SHIPPED.models.values():
        if model.kind in ("tts", "detection") or model.engine is None:
            assert model.refused, model.id


def test_prices_of_providers_have_an_amount_a_source_and_a_date() -> None:
    priced = [(model.id, price) for model in SHIPPED.models.values() for price in model.prices]
    assert len(priced) > 100
    for model_id, price in priced:
        amounts = (price.input_per_mtok, price.per_audio_minute, price.per_image, price.per_mchar)
        assert any(amount is not None and amount >= 0 for amount in amounts), model_id
        assert price.source, model_id
        assert re.fullmatch(r"20\d\d(-\d\d){0,2}", price.date), model_id


def test_the_prices_of_requests_are_the_contracts() -> None:
    assert SHIPPED.models["oxlo-demo"].price_micros == 100
    assert SHIPPED.models["oxlo-image-pro"].price_micros == 2700
    assert SHIPPED.models["llama-3.3-70b"].price_micros == 2700
    assert SHIPPED.models["mistral-7b"].price_micros == 1000
    assert {model.price_micros for model in SHIPPED.models.values()} == {100, 1000, 2700}


def test_the_embedded_models_context_is_its_files() -> None:
    here = SHIPPED.here()
    assert [model.id for model in here] == ["oxlo-demo", "oxlo-demo-image", "oxlo-demo-speech"]
    for model in here:
        assert model.path is not None, model.id
        if model.kind == "chat":
            assert model.context == model.geometry().context > 0, model.id


def test_what_a_model_needs_beside_it_is_in_the_catalogue_and_of_its_kind() -> None:
    assert SHIPPED.find("sdxl-lightning").companions == ["sdxl-lightning-lora"]
    loras = {name for model in SHIPPED.models.values() if model.image.loras for name in model.companions}
    assert loras == {model.id for model in SHIPPED.models.values() if model.kind == "lora"}


def test_nothing_falls_back_unasked() -> None:
    assert all(model.fallback is None for model in SHIPPED.models.values())


def test_it_agrees_with_the_researchers_table(shared: Path) -> None:
    source = tomllib.loads((shared / "reference" / "catalogue.toml").read_text("utf-8"))
    ours = {"oxlo-demo", "oxlo-demo-speech", "oxlo-demo-image", "bge-reranker-v2-m3"}
    ours |= {"sdxl-base", "sdxl-lightning-lora"}
    assert set(source["models"]) | set(source["hosted_only"]) | ours == set(SHIPPED.models)
    added = {"all-minilm": "all-minilm-l6-v2", "bge-reranker": "bge-reranker-v2-m3"}
    assert source["aliases"] | added == SHIPPED.aliases
    for model_id, facts in source["models"].items():
        model = SHIPPED.models[model_id]
        assert (model.repo, model.revision) == (facts["repo"], facts.get("revision"))
        assert model.context == facts.get("context_native")
        assert model.sampling == facts.get("sampling", {})
        assert len(model.prices) == len(facts.get("prices", []))
        for quant, build in model.files.items():
            known = facts["files"].get(quant, {}) if isinstance(facts.get("files"), dict) else {}
            if known.get("bytes"):
                assert (build.bytes, build.exact) == (known["bytes"], known["bytes_exact"]), (model_id, quant)
                assert (build.sha256, build.status) == (known.get("sha256"), known["status"])


def test_a_wheel_carries_it_inside_the_package(tmp_path: Path) -> None:
    """An installed package has models.toml beside catalogue.py, a checkout one folder up."""
    assert shipped_toml() == ROOT / "models.toml"
    package = tmp_path / "oxlo_local"
    package.mkdir()
    for name in ("__init__", "catalogue", "entry", "ct2", "diffuser", "gguf", "limits", "errors"):
        shutil.copy(ROOT / "oxlo_local" / f"{name}.py", package)
    shutil.copytree(ROOT / "oxlo_local" / "calls", package / "calls")
    shutil.copy(ROOT / "models.toml", package)
    code = "from oxlo_local.catalogue import *; print(shipped_toml(), len(Catalogue.load(None, installed={}).models))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == [str(package / "models.toml"), str(len(SHIPPED.models))]


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    path = tmp_path / "mistral.gguf"
    path.write_bytes(gguf_bytes(2000))
    return path


@pytest.mark.parametrize("name", ["qwen-3-32b", "qwen3-32b", "Qwen-3-32B", "QWEN3_32b", " qwen 3-32b "])
def test_spellings_of_one_name(name: str, mistral: Path) -> None:
    here = Catalogue.load(None, installed={"qwen-3-32b": mistral})
    resolved = here.resolve(name)
    assert (resolved.model.id, resolved.warning) == ("qwen-3-32b", None)


@pytest.mark.parametrize("name", ["qwen-3-32", "qwen", "mistral-7b-instruct", "", "gpt-5", "../mistral-7b"])
def test_no_other_model_answers(name: str, mistral: Path) -> None:
    here = Catalogue.load(None, installed={"mistral-7b": mistral, "qwen-3-32b": mistral})
    with pytest.raises(ModelNotFound):
        here.resolve(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mistrall-7b", "no model 'mistrall-7b'; did you mean mistral-7b"),
        ("mistral-7b", "`oxlo pull mistral-7b` fetches it"),
        ("deepseek-v3.2", "cannot be served here: .*405 GB.*the nearest that can be is gpt-oss-120b"),
        ("kimi-k2.5", "cannot be served here: a trillion parameters"),
        ("zzz", "no model 'zzz'; `oxlo list --all`"),
        ("hf:a/b:Q8_0", "`oxlo pull hf:a/b:Q8_0` fetches it and says its name here"),
    ],
)
def test_an_absent_model_is_explained(name: str, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words) as absent:
        SHIPPED.resolve(name)
    assert absent.value.param == "model"


def test_here_are_embedded_pulled_and_attached_models(tmp_path: Path, mistral: Path) -> None:
    loose = tmp_path / "Loose-Q8_0.gguf"
    loose.write_bytes(gguf_bytes(2000, context_length=77))
    known = Catalogue.load(None, installed={"mistral-7b": mistral}, default_price_usd=Decimal("0.5"))
    model = known.attach(loose)
    assert (model.id, model.kind, model.context, model.price_micros) == ("Loose-Q8_0", "chat", 77, 500_000)
    assert {"mistral-7b", "Loose-Q8_0"} <= {model.id for model in known.here()}
    assert known.attach(loose) == model
    assert known.resolve("loose-q8_0").model == model


def test_a_file_may_not_take_a_models_name(tmp_path: Path) -> None:
    path = tmp_path / "mistral-7b.gguf"
    path.write_bytes(gguf_bytes(2000))
    with pytest.raises(BadRequest, match="mistral-7b is a model of the catalogue already; rename it"):
        Catalogue.load(None, installed={}).attach(path)


def test_a_pulled_file_that_no_table_mentions_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(gguf_bytes(2000, architecture="bert"))
    model = Catalogue.load(None, installed={"you-any": path}).resolve("you-any").model
    assert (model.kind, model.path, model.price_micros) == ("embedding", path, 1000)


# -- a user's models.toml ---------------------------------------------------------------------------------------------

Write = Callable[[str], Path]


@pytest.fixture
def own(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "models.toml"
        path.write_text(text)
        return path

    return write


def test_it_changes_just_what_it_names(own: Write) -> None:
    path = own(
        """
        [aliases]
        fast = "mistral-7b"
        [models.mistral-7b]
        price_usd = 0.00005
        preload = true
        sampling = { temperature = 0.1 }
        options = { ctx = 4096, kv_type = "q8_0" }
        """
    )
    model = Catalogue.load(path, installed={}).find("fast")
    assert model.id == "mistral-7b"
    assert (model.price_micros, model.preload) == (50, True)
    assert model.sampling == {"temperature": 0.1, "top_p": 1.0}
    assert model.options == TextOptions(ctx=4096, kv_type="q8_0")
    assert model.files == SHIPPED.models["mistral-7b"].files


def test_it_adds_models_with_a_file_beside_it(own: Write, tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(gguf_bytes(2000))
    known = Catalogue.load(own('[models.mine]\nfile = "mine.gguf"\ntitle = "Mine"'), installed={})
    model = known.resolve("MINE").model
    assert (model.path, model.display_name, model.price_micros) == (tmp_path / "mine.gguf", "Mine", 1000)


def test_a_fallback_answers_and_says_so(own: Write, mistral: Path) -> None:
    path = own('[models."deepseek-v3.2"]\nfallback = "mistral-7b"')
    resolved = Catalogue.load(path, installed={"mistral-7b": mistral}).resolve("deepseek-v3.2")
    assert resolved.model.id == "mistral-7b"
    assert resolved.warning == "deepseek-v3.2 is not here; mistral-7b answers in its place"
    with pytest.raises(ModelNotFound, match="cannot be served here"):
        Catalogue.load(path, installed={}).resolve("deepseek-v3.2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[models.x]\nprize_usd = 1.0", r"\[models.x\] unknown key 'prize_usd'; did you mean price_usd"),
        ("[model.x]\nprice_usd = 1.0", "unknown key 'model'; did you mean models"),
        ("[models.x]\noptions = { context = 5 }", r"options: unknown key 'context'"),
        ("[models.x]\nsampling = { temprature = 1.0 }", "did you mean temperature"),
        ("[models.x]\nsampling = { top_k = 1.5 }", r"\[models.x\] Expected int, got"),
        ("[models.x]\nfiles.Q4 = { byte = 1 }", "files.Q4: unknown key 'byte'; did you mean bytes"),
        ("[models.x]\nprices = [{ vendor = 'a' }]", "prices: unknown key 'vendor'"),
        ("[models.x]\nkind = 'talk'", r"Invalid enum value 'talk' - at \$.kind"),
        ("[models.x]\nprice_usd = 'cheap'", r"\[models.x\]"),
        (
            "[models.x]\nprice_usd = 0.0000001",
            "price_usd: a price of 1E-7 USD is not a whole number of micro-",
        ),
        ("[models.x]\nprice_usd = -1", "price_usd: a price of -1 USD"),
        ("[models.x]\nid = 'y'", "unknown key 'id'"),
        (
            "[models.x]\nfallback = 'mistral-77b'",
            "fallback = 'mistral-77b': no such model; did you mean mistral-7b",
        ),
        ("[aliases]\nx = 'nothing-like-it'", r"\[aliases\] x = 'nothing-like-it': no such model"),
        ("[models.qwen3-32b]\npreload = true", "the catalogue writes this model as qwen-3-32b"),
        ("[models.x", "cannot read"),
        ("models = 5", "Expected object, got int"),
    ],
)
def test_mistakes_are_named_with_file_and_place(own: Write, text: str, words: str) -> None:
    path = own(text)
    with pytest.raises(BadRequest, match=words) as wrong:
        Catalogue.load(path, installed={})
    assert str(path) in wrong.value.message


# -- what can be served, and what it would take -----------------------------------------------------------------------


def test_kinds_without_an_engine_are_refused_with_a_reason() -> None:
    with pytest.raises(UnsupportedValue, match="kokoro-82m is of kind tts; this version .* serves .* chat"):
        servable(SHIPPED.models["kokoro-82m"])


def test_what_embeds_and_reranks_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(room.EXTRAS, "text", ("json",))
    kinds = {SHIPPED.find(name).kind for name in ("all-minilm", "bge-reranker")}
    assert kinds == {"embedding", "rerank"}
    for name in ("all-minilm", "bge-reranker"):
        servable(SHIPPED.find(name))
    assert {
        model.id for model in SHIPPED.models.values() if model.embedding and model.embedding.matryoshka
    } == {
        "nomic-embed-text-v1.5",
        "qwen3-embedding-0.6b",
    }


@pytest.mark.parametrize(
    ("architecture", "pooling", "kind"),
    [
        ("bert", "mean", "embedding"),
        ("bert", None, "embedding"),
        ("bert", "rank", "rerank"),
        ("llama", "last", "embedding"),
        ("llama", None, "chat"),
    ],
)
def test_a_local_file_says_what_it_is_for(
    tmp_path: Path, architecture: Architecture, pooling: Pooling | None, kind: str
) -> None:
    path = tmp_path / "mine.gguf"
    write(path, architecture, pooling=pooling)
    model = SHIPPED.attach(path)
    del SHIPPED.models[model.id]
    assert model.kind == kind and model.geometry().pooled == (kind != "chat")
    told = model.embedding
    assert (
        (told.dimensions, told.pooling) == (64, pooling) if told else kind != "embedding" or pooling is None
    )


def test_a_missing_engine_is_refused_with_the_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(room.EXTRAS, "text", ("no_such_engine",))
    with pytest.raises(ModelNotLoaded, match=r"OXLO_EXTRAS=text scripts/oxlo`, .* its extra \[text\]"):
        servable(SHIPPED.models["mistral-7b"])


def test_an_installed_engine_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(room.EXTRAS, "text", ("json",))
    servable(SHIPPED.models["mistral-7b"])


def test_geometry_comes_from_the_file_where_it_is_here(mistral: Path) -> None:
    model = SHIPPED.models["mistral-7b"]
    assert model.geometry().kv_per_token == 2 * 32 * 8 * 128
    assert model.geometry("Q8_0").weights == 7_702_565_088
    here = msgspec.structs.replace(model, path=mistral)
    assert (here.geometry().weights, here.geometry().layers) == (2000, 2)
    assert SHIPPED.models["deepseek-v3.2"].geometry().kv_per_token == 61 * 576, "latent attention"
    assert SHIPPED.models["gemma-4-12b"].geometry().estimated
    with pytest.raises(BadRequest, match="no size of mistral-7b:Q2_K; known are Q4_K_M"):
        model.geometry("Q2_K")


@pytest.mark.parametrize(("usd", "whole"), [("0.0027", 2700), ("0", 0), ("1", 1_000_000), ("0.000001", 1)])
def test_money_is_whole_micro_dollars(usd: str, whole: int) -> None:
    assert micros(Decimal(usd)) == whole
    with pytest.raises(BadRequest):
        micros(Decimal(usd) + Decimal("0.0000001"))


def test_how_speech_is_run_is_said_key_by_key(tmp_path: Path) -> None:
    own = tmp_path / "models.toml"
    own.write_text('[models.whisper-tiny.speech]\nbatch = 4\ndevice = "cpu"\n')
    assert Catalogue.load(own, installed={}).find("whisper-tiny").speech == SpeechOptions(
        batch=4, device="cpu"
    )
    own.write_text("[models.whisper-tiny.speech]\nbatches = 4\n")
    with pytest.raises(BadRequest, match=r"speech: unknown key 'batches'; did you mean batch\?"):
        Catalogue.load(own, installed={})


def test_how_images_are_drawn_is_said_key_by_key(tmp_path: Path) -> None:
    own = tmp_path / "models.toml"
    own.write_text('[models.sd-turbo.image]\nsteps = 2\ndevice = "cpu"\n')
    shipped = SHIPPED.models["sd-turbo"].image
    found = Catalogue.load(own, installed={}).find("sd-turbo").image
    assert found == msgspec.structs.replace(shipped, steps=2, device="cpu") and shipped.steps == 1
    own.write_text(
        '[models.sd-turbo.image]\nconfig = "base"\nloras = { ink = "ink.safetensors", far = "/l.safetensors" }\n'
    )
    placed = Catalogue.load(own, installed={}).find("sd-turbo").image
    assert placed.config == str(tmp_path / "base")
    assert placed.loras == {"ink": str(tmp_path / "ink.safetensors"), "far": "/l.safetensors"}
    own.write_text("[models.sd-turbo.image]\nsize = '1x1'\n")
    with pytest.raises(BadRequest, match=r"image: unknown key 'size'; did you mean sizes\?"):
        Catalogue.load(own, installed={})


@pytest.mark.parametrize(
    "model",
    [model for model in SHIPPED.models.values() if model.kind == "image" and not model.refused],
    ids=lambda model: model.id,
)
def test_image_models_say_how_they_draw(model: Model) -> None:
    image = model.image
    assert image.steps and image.sizes and image.guidance is not None
    assert image.guided is not None and image.negative is not None
    assert image.guided or not image.negative
    assert all(side % 16 == 0 for size in image.sizes for side in size)
