"""The race track: ratios, flags, where a peer is found, what equals what; and a small race where a peer is here."""

import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import bench_peers
from oxlo_local import random_model
from race import equality, floor, loads, peer, ratios, table
from race.equality import Token
from race.kept import Kept, NotKept
from race.racers import Cores
from race.ratios import Bar
from race.talks import Talk, Tongue, common
from tests.conftest import ROOT

# -- ratios -----------------------------------------------------------------------------------------------------------


def test_a_ratio_is_a_geometric_mean_with_students_interval() -> None:
    found = ratios.ratio([2.0, 1.0, 4.0], [1.0, 1.0, 2.0])
    assert found is not None and found.rounds == 3
    assert found.mean == pytest.approx(2 ** (2 / 3))
    half = (
        4.303 * (math.log(2) / math.sqrt(3)) / math.sqrt(3)
    )  # deviation of (1, 0, 1) doublings is 1/sqrt(3)
    assert found.low == pytest.approx(found.mean * math.exp(-half), rel=1e-3)
    assert found.high == pytest.approx(found.mean * math.exp(half), rel=1e-3)


def test_one_round_has_no_interval_and_no_pair_no_ratio() -> None:
    found = ratios.ratio([3.0], [2.0])
    assert (
        found is not None
        and found.rounds == 1
        and found.low == found.mean == found.high == pytest.approx(1.5)
    )
    assert ratios.ratio([0.0], [2.0]) is None


def test_a_drift_that_hits_both_leaves_no_trace() -> None:
    found = ratios.ratio([10.0, 5.0, 20.0], [10.0, 5.0, 20.0])
    assert found is not None and found.low == found.high == 1.0


@pytest.mark.parametrize(
    ("ours", "holds"), [([1.0, 1.01, 0.99], True), ([1.0, 1.2, 0.8], False), ([0.9, 0.9, 0.9], False)]
)
def test_as_fast_holds_when_the_lower_bound_reaches_97_percent(ours: list[float], holds: bool) -> None:
    verdict = ratios.judge(Bar("x", "at_least", 1.0), [{"x": value} for value in ours], [{"x": 1.0}] * 3)
    assert verdict.holds is holds


def test_each_kind_of_bar() -> None:
    ours, other = [{"x": 12.0}, {"x": 14.0}], [{"x": 10.0}, {"x": 10.0}]
    assert ratios.judge(Bar("x", "extra", 3.0), ours, other).holds
    assert not ratios.judge(Bar("x", "extra", 2.9), ours, other).holds
    assert ratios.judge(Bar("x", "at_most", 1.3), ours, other).holds
    assert ratios.judge(Bar("x", "own_at_most", 13.0), ours, other).holds
    assert not ratios.judge(Bar("x", "own_at_most", 12.9), ours, other).holds
    shown = ratios.judge(Bar("x", "at_most", None), ours, other)
    assert shown.holds is None and shown.estimate is not None
    assert ratios.judge(Bar("y", "at_most", 1.0), ours, other).holds is False  # no figure holds no bar


def test_turns_of_a_round_become_their_medians() -> None:
    assert ratios.merge([{"a": 1.0}, {"a": 9.0, "b": 4.0}, {"a": 2.0}]) == {"a": 2.0, "b": 4.0}


# -- the peer ---------------------------------------------------------------------------------------------------------

SHAPE = peer.Shape(Path("m.gguf"), parallel=8, ctx=512, threads=2)


def program(folder: Path, name: str = "llama-server") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\necho version: 7\n")
    path.chmod(0o755)
    return path


def test_the_variable_beats_the_path_beats_the_archive(tmp_path: Path) -> None:
    given, on_path = program(tmp_path / "given"), program(tmp_path / "path")
    program(tmp_path / "packed")
    archive = tmp_path / peer.ARCHIVE
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "packed", ".")
    root = tmp_path / "checkout"
    environ = {"LLAMA_SERVER": str(given), "PATH": f"{on_path.parent}:{os.environ['PATH']}"}
    assert peer.find(environ, root).command == (str(given),)
    assert peer.find({"PATH": environ["PATH"]}, root).command == (str(on_path),)
    found = peer.find({"PATH": "/usr/bin:/bin"}, root)
    assert found.command == (str(root / "build" / "peers" / "llama-server"),)
    assert found.version == "version: 7, on this engine's libllama and libggml" and found.floor is None
    assert found.environ["LD_LIBRARY_PATH"] == f"{peer.kernels()}:{root / 'build' / 'peers'}"
    assert (peer.kernels() / "libllama.so").exists() or sys.platform != "linux"


def test_the_floor_is_the_program_beside_the_server(tmp_path: Path) -> None:
    bench = program(tmp_path, "llama-batched-bench")
    assert peer.find({"LLAMA_SERVER": str(program(tmp_path)), "PATH": "/bin"}, tmp_path).floor == bench


def test_a_peer_that_is_not_there_is_told_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(peer.NoPeer, match="LLAMA_SERVER is /nowhere"):
        peer.find({"LLAMA_SERVER": "/nowhere"}, tmp_path)
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    with pytest.raises(peer.NoPeer, match=r"PATH has none, .*pip install xllamacpp"):
        peer.find({"PATH": ""}, tmp_path)
    monkeypatch.setattr(peer, "find_spec", lambda name: name == "xllamacpp")
    assert peer.find({"PATH": ""}, tmp_path).command[-1].endswith("xllama.py")


def test_both_servers_get_the_same_sizes() -> None:
    ours, theirs = peer.our_arguments(SHAPE), peer.peer_arguments(SHAPE, 9)
    assert ours[:1] == ["m.gguf"] and "m.gguf" in theirs

    def after(flag: str, words: list[str]) -> str:
        return words[words.index(flag) + 1]

    assert after("--threads", ours) == after("-t", theirs) == after("-tb", theirs) == "2"
    assert after("--parallel", ours) == after("-np", theirs) == "8"
    assert int(after("--ctx", ours)) * 8 == int(after("-c", theirs))
    assert "--gpu-layers" not in ours and "-ngl" not in theirs
    gpu = peer.Shape(Path("m"), 1, 512, gpu_layers=-1, flash_attention=True, backend_sampling=True)
    assert {"-ngl", "--backend-sampling"} <= set(peer.peer_arguments(gpu, 9))
    assert {"--gpu-layers", "--flash-attention", "--backend-sampling"} <= set(peer.our_arguments(gpu))


def test_the_floor_has_cells_for_all_of_it() -> None:
    words = peer.floor_arguments(SHAPE, 108, 64, 16)
    assert words[words.index("-c") + 1] == str(16 * 256) and words[words.index("-npl") + 1] == "16"


def test_the_client_keeps_a_core_for_itself_where_there_are_two() -> None:
    assert Cores.apart([3, 1, 2]) == Cores((2, 3), (1,))
    assert Cores.apart([0]) == Cores()


# -- figures ----------------------------------------------------------------------------------------------------------


def test_the_floors_line_is_read_like_a_servers() -> None:
    line = {"pp": 100, "tg": 50, "pl": 4, "t": 2.0, "speed_pp": 300.0, "speed_tg": 150.0, "n_kv": 600}
    found = floor.figures_of(f"warning\n{json.dumps(line)}\n")
    assert found["all_tokens_per_second"] == 300 and found["tokens_per_second"] == 100
    with pytest.raises(floor.NoFloor, match="no figures"):
        floor.figures_of("ggml: out of memory")


def test_the_last_chunk_of_a_prompt_costs_more_than_the_first() -> None:
    def ttft(tokens: int) -> float:
        return 2.0 * tokens + 0.001 * tokens**2

    assert loads.last_chunk(ttft(8000), ttft(4000), 8000, 250) == pytest.approx(ttft(8000) - ttft(7750))
    assert loads.last_chunk(800.0, 400.0, 8000, 250) == pytest.approx(25.0)  # no attention to speak of


def test_scaled_lengths_keep_the_shared_part_inside_the_prompt() -> None:
    small = loads.Sizes().scaled(0.01)
    assert small.shared < small.sharing and small.prompt >= 24 and small.turns >= 3


def test_a_table_names_every_bar() -> None:
    bars = [bar for load in (loads.Clients(1), loads.FirstToken(), loads.Shared()) for bar in load.bars]
    assert [table.demanded(bar) for bar in bars] == [
        ">= 1x", ">= 0.95x of the floor", "", "<= +3", "<= +3", "<= 0.2x", "",
    ]  # fmt: skip
    assert table.bounds(Bar("x", "extra", 3.0), ratios.Estimate(1.5, 1.0, 2.0, 5)) == "+1.5 [1, 2]"
    assert table.bounds(Bar("x", "at_least", 1.0), ratios.Estimate(1.05, 1.0, 1.1, 1)) == "1.05x"


# -- equality ---------------------------------------------------------------------------------------------------------


def said(*tokens: tuple[str, float], rival: tuple[str, float] = ("?", -9.0)) -> list[Token]:
    return [Token(text, logprob, {text: logprob, rival[0]: rival[1]}) for text, logprob in tokens]


def test_equal_answers_have_a_distance_and_no_parting() -> None:
    one, other = said(("a", -1.0), ("b", -2.0)), said(("a", -1.01), ("b", -1.95))
    assert equality.distance(one, other) == pytest.approx(0.05)
    assert equality.parting(one, other) is None


def test_answers_part_where_two_tokens_were_close_or_not() -> None:
    one = said(("a", -1.0), ("b", -2.0), rival=("c", -2.01))
    other = said(("a", -1.0), ("c", -2.0), rival=("b", -2.5))
    parting = equality.parting(one, other)
    assert parting is not None and parting.at == 1 and parting.margin == pytest.approx(0.01)
    assert equality.unexplained([(one, other)], 0.006) == 0
    assert equality.unexplained([(one, other)], 0.004) == 1


def test_no_rounding_excuses_a_token_that_was_no_rival_or_an_answer_that_ends_early() -> None:
    far = said(("a", -1.0)), said(("z", -1.0))
    short = said(("a", -1.0)), said(("a", -1.0), ("b", -1.0))
    assert equality.unexplained([far, short], 10.0) == 2


def test_both_forms_of_logprobs_are_read() -> None:
    chat = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0}]}]}
    legacy = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": -2.0}], "text_offset": [0]}
    for form in (chat, legacy):
        body = json.dumps({"choices": [{"logprobs": form}]}).encode()
        assert equality.tokens_of(body) == [Token("a", -1.0, {"b": -2.0})]


# -- conversations ----------------------------------------------------------------------------------------------------


def test_what_is_new_in_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    random_model.write(path)
    tongue, talk = Tongue(path), Talk()
    first = talk.say("the water of the people", template=True)
    length = len(tongue.read(first).tokens)
    talk.hear(first, " find", (length, 0, 2), tongue)
    assert (talk.new, talk.asked, talk.turns) == (length, length, 1)
    second = talk.say("how many", template=True)
    longer = len(tongue.read(second).tokens)
    talk.hear(second, " now", (longer, length, 2), tongue)
    assert talk.asked == longer and length < talk.new <= longer
    assert talk.new - length == longer - common(
        tongue.read(second).tokens, tongue.tokens(tongue.read(first).text + " find")[:-1]
    )


# -- rounds that are kept ---------------------------------------------------------------------------------------------


def begun(peer_version: str = "a peer") -> table.Report:
    return table.Report("a machine", peer_version, 1.0, {}, [], [])


def test_rounds_of_several_calls_come_together(tmp_path: Path) -> None:
    path, bars = tmp_path / "race.json", [Bar("x", "at_least", 1.0)]
    first = Kept(begun(), path)
    first.run("a model", ["oxlo serve --threads 1"])
    first.add("clients-1", "m", bars, table.Turn({"x": 2.0}, {"x": 1.0}, {}))
    first.fail("shared", "m", [], "no answer")
    second = Kept(begun(), path)
    row = second.add("clients-1", "m", bars, table.Turn({"x": 8.0}, {"x": 1.0}, {}))
    assert len(row.rounds) == 2 and second.rounds("clients-1", "other") == []
    assert row.verdicts[0].estimate is not None and row.verdicts[0].estimate.mean == pytest.approx(4.0)
    assert [each.failed for each in second.report.rows] == [None, "no answer"]
    second.add("shared", "m", [], table.Turn({}, {}, {}))
    assert not any(each.failed for each in Kept(begun(), path).report.rows)


def test_what_was_run_otherwise_is_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "race.json"
    kept = Kept(begun(), path)
    kept.run("a model", ["oxlo serve --threads 1"])
    kept.add("clients-1", "m", [], table.Turn({}, {}, {}))
    with pytest.raises(NotKept, match="another peer"):
        Kept(begun("another peer"), path)
    with pytest.raises(NotKept, match="other flags"):
        Kept(begun(), path).run("a model", ["oxlo serve --threads 2"])
    path.write_text("[]")
    with pytest.raises(NotKept, match="holds no race"):
        Kept(begun(), path)


# -- a small race -----------------------------------------------------------------------------------------------------


def race(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "bench_peers.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env={**os.environ, **environ})


def test_without_a_peer_there_is_one_clear_line() -> None:
    done = race(LLAMA_SERVER="/nowhere/llama-server")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "bench-peers: LLAMA_SERVER is /nowhere/llama-server, which is no program; give the path of llama-server"
    ]


@pytest.mark.parametrize(("more", "slots"), [([], [1, 8, 8]), (["--slots", "32"], [32, 32, 32])])
def test_a_server_has_as_many_slots_as_clients_or_more(
    tmp_path: Path, more: list[str], slots: list[int]
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    asked = ["--model", str(model), "--clients", "1,8", "--only", "clients,first-token", *more]
    found = bench_peers.groups(bench_peers.options_from(asked), loads.Sizes())
    assert [load.name for group in found for load in group.loads] == ["clients-1", "clients-8", "first-token"]
    assert [group.shape.parallel for group in found] == slots


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_small_race(tmp_path: Path) -> None:
    try:
        peer.find(os.environ, ROOT)
    except peer.NoPeer as error:
        pytest.skip(str(error))
    model = tmp_path / "small.gguf"
    random_model.write(
        model, shape=random_model.Shape(d=128, layers=4, heads=4, kv_heads=2, ff=256, vocab=32768)
    )
    done = race(
        *("--model", str(model), "--scale", "0.1", "--rounds", "2", "--clients", "4", "--json"),
        *("--only", "clients,first-token,greedy,beside"),
    )
    report = json.loads(done.stdout)
    assert not [row for row in report["rows"] if row["failed"]], done.stderr
    rows = {row["load"]: row for row in report["rows"]}
    assert set(rows) == {"clients-4", "first-token", "greedy", "beside-long"}
    plain = rows["clients-4"]["rounds"]
    assert len(plain) == 2 and all(turn["ours"]["completion_tokens"] > 0 for turn in plain)
    assert plain[0]["ours"]["prompt_tokens"] == plain[0]["peer"]["prompt_tokens"]
    assert rows["greedy"]["rounds"][0]["ours"]["unexplained_against_peer"] == 0
    assert rows["beside-long"]["rounds"][0]["ours"]["long_ttft"] > 0
    missed = any(each["holds"] is False for row in report["rows"] for each in row["verdicts"])
    assert done.returncode == int(missed)
