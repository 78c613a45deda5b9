"""`oxlo pull` end to end: names, builds, and what comes along."""

import os
from pathlib import Path

import pytest

from oxlo_local import random_diffuser, random_whisper
from oxlo_local.errors import BadRequest, ModelDoesNotFit, ModelNotFound, NotFound, OxloError
from oxlo_local.hardware import Machine
from oxlo_local.hub import RemoteFile, Snapshot
from oxlo_local.pull import Chosen, Progress, Pulled, builds, eye_in
from tests import hub as stand_in
from tests.hub import Repository, gguf_bytes
from tests.pulling import GB, LARGER, OWN_MODELS, SMALL, Desk, desk, site

__all__ = ["desk", "site"]


# -- models of the catalogue ------------------------------------------------------------------------------------------


def test_a_pulled_model_has_a_manifest_and_answers_to_its_name(desk: Desk, site: stand_in.Hub) -> None:
    manifest = desk.pull("tiny")

    assert manifest.path.read_bytes() == SMALL
    kept = desk.store.manifest("tiny")
    assert kept is not None
    assert (kept.repo, kept.revision, kept.quant) == ("own/tiny-GGUF", "1" * 40, "Q4_K_M")
    assert [(file.name, file.bytes, file.sha256, file.ours) for file in kept.files] == [
        ("tiny-Q4_K_M.gguf", 4000, Repository.sha256(SMALL), True)
    ]
    assert kept.pulled.endswith("+00:00")
    assert desk.catalogue().resolve("Tiny").model.path == manifest.path
    assert desk.store.unfinished("tiny") == []
    chosen = next(event for event in desk.told if isinstance(event, Chosen))
    assert (chosen.quant, chosen.files, chosen.bytes, chosen.missing) == ("Q4_K_M", 1, 4000, 4000)
    assert isinstance(desk.told[-1], Pulled)
    assert {event.verifying for event in desk.told if isinstance(event, Progress)} == {False, True}


def test_another_build_is_taken_when_named_and_replaces_the_first(desk: Desk) -> None:
    first = desk.pull("tiny")
    second = desk.pull("tiny:q8_0")

    assert second.quant == "Q8_0"
    assert second.path.read_bytes() == LARGER
    assert not first.path.exists() and not os.path.lexists(first.path)
    assert "replaced the build that was here" in desk.notes()
    assert desk.store.installed() == {"tiny": second.path}


@pytest.mark.parametrize(("entry", "quant"), [("", "Q4_K_M"), ('default_quant = "Q8_0"', "Q8_0")])
def test_an_entry_may_name_a_repository_and_no_sizes(desk: Desk, entry: str, quant: str) -> None:
    (desk.settings.home / "models.toml").write_text(f'[models.mine]\nrepo = "own/tiny-GGUF"\n{entry}\n')
    manifest = desk.pull("mine")
    assert (manifest.id, manifest.quant) == ("mine", quant)
    assert desk.pull("mine").path == manifest.path, "again is no error"


def test_an_entry_without_a_place_is_named(desk: Desk) -> None:
    (desk.settings.home / "models.toml").write_text('[models.mine]\ntitle = "Mine"\n')
    with pytest.raises(BadRequest, match="neither a repo nor a file for mine"):
        desk.pull("mine")


def test_a_model_that_is_here_is_not_fetched_again(desk: Desk, site: stand_in.Hub) -> None:
    desk.pull("tiny")
    before = len(site.downloads())
    desk.pull("tiny")
    assert len(site.downloads()) == before
    assert "tiny:Q4_K_M is already here" in desk.notes()


def test_what_is_here_stays_when_the_hub_is_away(desk: Desk, site: stand_in.Hub) -> None:
    manifest = desk.pull("tiny")
    site.status = 418
    assert desk.pull("tiny").path == manifest.path
    assert "tiny stays as it is" in desk.notes()


def test_a_build_that_the_repository_no_longer_has_is_named_with_what_it_has(desk: Desk) -> None:
    with pytest.raises(NotFound, match=r"there is no Q2_K in the repository; it has Q4_K_M, Q8_0"):
        desk.pull("tiny:Q2_K")


def test_a_file_that_was_renamed_is_found_by_its_build(desk: Desk, site: stand_in.Hub) -> None:
    site.repositories["own/tiny-GGUF"] = Repository({"moved/Tiny.q4_k_m.gguf": SMALL})
    assert desk.pull("tiny").files[0].name == "moved/Tiny.q4_k_m.gguf"


def test_the_largest_build_that_fits_is_taken_when_the_default_does_not(
    desk: Desk, site: stand_in.Hub
) -> None:
    site.repositories["own/big-GGUF"] = Repository({"big-Q3_K_M.gguf": SMALL, "big-Q2_K.gguf": LARGER})
    desk.machine = Machine(4, 6 * GB, 1 * GB)  # what is in use now does not count
    assert desk.pull("big").quant == "Q3_K_M"


def test_nothing_is_fetched_when_no_build_fits(desk: Desk, site: stand_in.Hub) -> None:
    desk.machine = Machine(4, 2 * GB, 2 * GB)
    with pytest.raises(
        ModelDoesNotFit, match=r"weights 4\.0 GB .*`oxlo pull big:Q2_K` fetches it all the same"
    ):
        desk.pull("big")
    assert not site.seen


def test_a_folder_model_is_fetched_whole(desk: Desk, site: stand_in.Hub) -> None:
    files = {"model.bin": LARGER, "config.json": b"{}", "vocabulary.json": b"[]", "README.md": b"#"}
    site.repositories["own/heard"] = Repository(files)
    manifest = desk.pull("heard")
    assert manifest.path.is_dir()
    assert sorted(path.name for path in manifest.path.iterdir()) == [
        "config.json",
        "model.bin",
        "vocabulary.json",
    ]


def test_a_speech_model_that_no_catalogue_knows(desk: Desk, site: stand_in.Hub, tmp_path: Path) -> None:
    folder = tmp_path / "my-whisper"
    random_whisper.write(folder, random_whisper.Shape(multilingual=False))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    site.repositories["own/faster-whisper-mine"] = Repository({**files, "README.md": b"#"})
    pulled = desk.pull("hf:own/faster-whisper-mine")
    assert pulled.id == "faster-whisper-mine" and len(pulled.files) == len(files)
    attached = desk.pull(str(folder))
    assert (attached.id, attached.path) == ("my-whisper", folder) and not any(f.ours for f in attached.files)
    for model_id in (pulled.id, attached.id):
        model = desk.catalogue().resolve(model_id).model
        assert (model.kind, model.engine) == ("speech", "speech") and model.path is not None
        assert (model.path / "model.bin").read_bytes() == files["model.bin"]
    desk.store.remove("my-whisper")
    assert (folder / "model.bin").exists()
    with pytest.raises(BadRequest, match="holds no speech model: it lacks model.bin"):
        desk.pull(str(tmp_path / "home") + "/")


def test_an_image_model_is_fetched_with_its_folders(desk: Desk, site: stand_in.Hub, tmp_path: Path) -> None:
    folder = tmp_path / "my-diffuser"
    random_diffuser.write(folder)
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    rest = {"README.md": b"#", "unet/diffusion_pytorch_model.bin": LARGER, "one.safetensors": SMALL}
    site.repositories["own/drawn"] = Repository({**files, **rest})
    site.repositories["own/unknown"] = Repository({**files, **rest})
    for name in ("drawn", "hf:own/unknown"):
        pulled = desk.pull(name)
        assert pulled.path.is_dir() and {file.name for file in pulled.files} == set(files)
        for inner, data in files.items():
            assert (pulled.path / inner).read_bytes() == data
        model = desk.catalogue().resolve(pulled.id).model
        assert (model.kind, model.engine, model.path) == ("image", "image", pulled.path)
    assert desk.store.remove("drawn") > 0


def test_a_local_image_model_is_noted_where_it_lies(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "my-diffuser"
    random_diffuser.write(folder)
    single = tmp_path / "one.safetensors"
    single.write_bytes((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    for path, model_id in ((folder, "my-diffuser"), (single, "one")):
        attached = desk.pull(str(path))
        assert (attached.id, attached.path) == (model_id, path) and not any(
            file.ours for file in attached.files
        )
        assert desk.catalogue().resolve(model_id).model.kind == "image"
        assert desk.pull(str(path)).id == model_id  # and again
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "weights.bin")
    with pytest.raises(BadRequest, match=r"vae/weights\.bin is pickled"):
        desk.pull(str(folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mistrl-7b", "did you mean mistral-7b"),
        ("deepseek-v3.2", "cannot be served here: .* 405 GB .* gpt-oss-120b"),
        ("kimi-k2.5", "a trillion parameters"),
    ],
)
def test_names_that_cannot_be_pulled_are_explained(desk: Desk, name: str, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words):
        desk.pull(name)


# -- repositories and files -------------------------------------------------------------------------------------------


def listing(*paths: str) -> Snapshot:
    return Snapshot("a/b", "1" * 40, tuple(RemoteFile(path, 1, None, "0") for path in paths))


def test_builds_are_told_by_their_file_names() -> None:
    found = builds(
        listing(
            "Qwen3-8B-Q4_K_M.gguf",
            "sub/Model-Q8_0/Model-Q8_0-00001-of-00002.gguf",
            "sub/Model-Q8_0/Model-Q8_0-00002-of-00002.gguf",
            "model.UD-IQ2_M.gguf",
            "gpt-oss-20b-mxfp4.gguf",
            "e5_fp16.gguf",
            "mmproj-F16.gguf",
            "MTP/Model-Q6_K.gguf",
            "model.imatrix-Q5_K.gguf",
            "README.md",
        )
    )
    assert {quant: [len(parts) for parts in models] for quant, models in found.items()} == {
        "Q4_K_M": [1],
        "Q8_0": [2],
        "UD-IQ2_M": [1],
        "MXFP4": [1],
        "FP16": [1],
    }


def test_a_repository_gives_its_usual_build(desk: Desk, site: stand_in.Hub) -> None:
    site.repositories["You/Some-Model-GGUF"] = Repository(
        {"m-Q8_0.gguf": LARGER, "m-Q4_K_M.gguf": SMALL, "mmproj-f16.gguf": SMALL}
    )
    manifest = desk.pull("hf:You/Some-Model-GGUF")
    assert (manifest.id, manifest.quant) == ("some-model", "Q4_K_M")
    assert [file.name for file in manifest.files] == ["m-Q4_K_M.gguf", "mmproj-f16.gguf"]
    model = desk.catalogue().resolve("some-model").model
    assert (model.kind, model.context, model.price_micros) == ("chat", 2048, 1000)


def test_of_several_image_encoders_the_usual_or_the_named_one_is_taken() -> None:
    names = ["m-Q8_0.gguf", "mmproj-BF16.gguf", "mmproj-F32.gguf", "mmproj-F16.gguf", "mmproj-readme.md"]
    assert [file.path for file in eye_in(listing(*names))] == ["mmproj-F16.gguf"]
    assert [file.path for file in eye_in(listing(*names), "mmproj-f32.gguf")] == ["mmproj-F32.gguf"]
    assert eye_in(listing(*names), "mmproj-q8.gguf") == eye_in(listing("m-Q8_0.gguf")) == ()


def test_an_image_encoder_comes_along_and_is_fetched_later_where_it_is_missing(
    desk: Desk, site: stand_in.Hub
) -> None:
    site.repositories["own/tiny-GGUF"].files["mmproj-x.gguf"] = LARGER
    assert [file.name for file in desk.pull("tiny").files] == ["tiny-Q4_K_M.gguf"], "the catalogue names none"
    seeing = OWN_MODELS.replace("[models.big]", 'mmproj = "mmproj-x.gguf"\n[models.big]')
    desk.settings.user_models_toml.write_text(seeing)
    desk.told.clear()
    manifest = desk.pull("tiny")
    assert [file.name for file in manifest.files] == ["tiny-Q4_K_M.gguf", "mmproj-x.gguf"]
    (chosen,) = [event for event in desk.told if isinstance(event, Chosen)]
    assert chosen.missing == len(LARGER), "what was here is not fetched again"
    desk.told.clear()
    assert desk.pull("tiny").files == manifest.files
    assert "already here" in desk.notes()
    assert desk.store.remove("tiny") == len(SMALL) + len(LARGER)


def test_a_draft_model_comes_along(desk: Desk, site: stand_in.Hub) -> None:
    site.repositories["own/small-GGUF"] = Repository({"small-Q4_K_M.gguf": SMALL})
    drafted = OWN_MODELS.replace("[models.big]", 'options = { draft = "small" }\n[models.big]')
    small = '\n[models.small]\nrepo = "own/small-GGUF"\ndefault_quant = "Q4_K_M"\n'
    desk.settings.user_models_toml.write_text(drafted + small)
    assert desk.pull("tiny").id == "tiny"
    assert [event.model for event in desk.told if isinstance(event, Pulled)] == ["small", "tiny"]
    assert desk.store.manifest("small") is not None
    desk.told.clear()
    desk.pull("tiny")
    assert [event.model for event in desk.told if isinstance(event, Pulled)] == ["tiny"]


def test_low_rank_weights_come_along_and_are_there_once(desk: Desk, site: stand_in.Hub) -> None:
    site.repositories["own/drawn"] = Repository(
        {"model_index.json": b"{}", "unet/x.safetensors": b"x" * 3000}
    )
    site.repositories["own/fast"] = Repository({"fast_4.safetensors": b"y" * 400, "fast_8.safetensors": b"z"})
    fast = """
[models.drawn-fast]
kind = "image"
engine = "image"
repo = "own/drawn"
default_quant = "float16"
image = { loras = { fast = "fast-lora" }, fused = ["fast"] }
files.float16 = { bytes = 3_000, status = "confirmed", files = ["model_index.json", "*/*.safetensors"] }
[models.fast-lora]
kind = "lora"
engine = "image"
repo = "own/fast"
default_quant = "float16"
files.float16 = { bytes = 400, status = "confirmed", files = ["fast_4.safetensors"] }
"""
    desk.settings.user_models_toml.write_text(OWN_MODELS + fast)
    manifest = desk.pull("drawn-fast")
    assert [event.model for event in desk.told if isinstance(event, Pulled)] == ["fast-lora", "drawn-fast"]
    lora = desk.store.manifest("fast-lora")
    assert lora is not None and [file.name for file in lora.files] == ["fast_4.safetensors"]
    assert lora.path.read_bytes() == b"y" * 400 and manifest.path.is_dir()
    desk.told.clear()
    desk.pull("drawn")
    (chosen,) = [event for event in desk.told if isinstance(event, Chosen)]
    assert chosen.missing == 0, "the base lies on the disk once"
    assert desk.store.remove("drawn") == 0 and desk.store.remove("drawn-fast") == 3002


def test_a_repository_may_not_take_the_name_of_another_model(desk: Desk, site: stand_in.Hub) -> None:
    site.repositories["evil/mistral-7b-GGUF"] = Repository({"m-Q4_K_M.gguf": SMALL})
    site.repositories["other/Tiny"] = Repository({"m-Q4_K_M.gguf": SMALL})
    assert desk.pull("hf:evil/mistral-7b-GGUF").id == "evil-mistral-7b"
    assert desk.pull("hf:other/Tiny").id == "other-tiny"
    assert desk.pull("hf:own/tiny-GGUF:Q8_0").id == "tiny", "the catalogue's own repository is its model"


def test_split_files_come_whole_and_in_order(desk: Desk, site: stand_in.Hub) -> None:
    parts = {f"big/m-Q4_K_M-0000{part}-of-00003.gguf": gguf_bytes(3000, seed=part) for part in (1, 2, 3)}
    site.repositories["you/split"] = Repository(parts)
    manifest = desk.pull("hf:you/split")
    assert manifest.path.name == "m-Q4_K_M-00001-of-00003.gguf"
    assert [file.path.read_bytes() for file in manifest.files] == list(parts.values())


@pytest.mark.parametrize(
    ("files", "name", "words"),
    [
        (["x-Q5_1.gguf", "x-Q3_K_L.gguf"], "hf:a/b", r"name one as hf:a/b:QUANT: Q3_K_L, Q5_1"),
        (
            ["x-Q4_K_M.gguf", "y-Q4_K_M.gguf", "x-F32.gguf"],
            "hf:a/b:Q4_K_M",
            "several models in Q4_K_M: x-.*, y-",
        ),
        (["x-Q4_K_M.gguf"], "hf:a/b:Q9", "there is no Q9 in the repository; it has Q4_K_M"),
        (["model.safetensors"], "hf:a/b", "holds no GGUF model"),
        (["x-Q4_K_M-00001-of-00002.gguf"], "hf:a/b", "has 1 of the 2 parts"),
        ([], "hf:justaname", "write it as hf:OWNER/NAME"),
        ([], "some/path", "there is no file .* hf:OWNER/NAME"),
    ],
)
def test_what_is_not_clear_is_asked_for(
    desk: Desk, site: stand_in.Hub, files: list[str], name: str, words: str
) -> None:
    site.repositories["a/b"] = Repository(dict.fromkeys(files, SMALL))
    with pytest.raises(OxloError, match=words):
        desk.pull(name)


def test_a_file_that_no_engine_can_load_is_refused(desk: Desk, site: stand_in.Hub) -> None:
    site.repositories["a/b"] = Repository({"x-Q4_K_M.gguf": b"not a model" * 500})
    with pytest.raises(BadRequest, match="does not begin with the letters GGUF"):
        desk.pull("hf:a/b")
    assert desk.store.installed() == {}


def test_a_local_file_is_noted_where_it_lies(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(SMALL)
    manifest = desk.pull(str(path))
    assert (manifest.id, manifest.source, manifest.path) == ("mine", "file", path)
    assert manifest.files[0].sha256 == Repository.sha256(SMALL)
    assert desk.pull(str(path)).id == "mine", "again is no error"
    assert desk.catalogue().resolve("mine").model.path == path

    assert desk.store.remove("mine") == 0
    assert path.exists()


def test_a_pulled_file_that_went_bad_is_in_nobodys_way(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(SMALL)
    desk.pull(str(path))
    path.write_bytes(b"no model any more")
    with pytest.raises(
        ModelNotFound, match="mine cannot be served here: .* is no GGUF file .*`oxlo rm mine` forgets it"
    ):
        desk.catalogue().resolve("mine")
    assert desk.catalogue().resolve("oxlo-demo").model.path
    with pytest.raises(BadRequest, match="is no GGUF file"):
        desk.pull(str(path))
    assert desk.store.remove("mine") == 0 and path.exists()
