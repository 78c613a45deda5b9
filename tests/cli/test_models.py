"""`oxlo pull`, `list`, `show`, `rm` and `plan` as real processes: what they print, where, and their exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import hub as stand_in
from tests.conftest import ROOT, StartServer, until
from tests.hub import Repository, gguf_bytes, running_hub

CHUNK = 10 * 1024 * 1024  # huggingface_hub writes to the disk in pieces of this size
COMMANDS = ("pull", "list", "show", "rm", "plan")
OWN_MODELS = """
[models.tiny]
title = "A tiny model"
repo = "own/tiny-GGUF"
licence = "mit"
default_quant = "Q4_K_M"
context = 2048
files.Q4_K_M = { bytes = 4_000, status = "unconfirmed", files = ["tiny-Q4_K_M.gguf"] }
files.Q8_0 = { bytes = 9_000_000_000_000, status = "confirmed", files = ["tiny-Q8_0.gguf"] }
[aliases]
wee = "tiny"
"""


@pytest.fixture
def site() -> Iterator[stand_in.Hub]:
    with running_hub() as site:
        site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": gguf_bytes(4000)})
        yield site


@dataclass
class Shell:
    """Runs `oxlo` commands in one OXLO_HOME against the stand-in."""

    home: Path
    environ: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "oxlo_local", *arguments],
            cwd=ROOT,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, code: int = 0, **environ: str) -> tuple[str, str]:
        process = self.start(*arguments, **environ)
        out, err = process.communicate(timeout=50)
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out, err


@pytest.fixture
def shell(home: Path, tmp_path: Path, site: stand_in.Hub) -> Iterator[Shell]:
    (home / "config.toml").touch()
    (home / "models.toml").write_text(OWN_MODELS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OXLO_", "HF_"))}
    shell = Shell(
        home,
        {
            **kept,
            "OXLO_HOME": str(home),
            "OXLO_CONFIG": str(home / "config.toml"),
            "HF_ENDPOINT": site.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        },
    )
    yield shell
    for process in shell.started:
        with process:
            process.kill()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(shell: Shell, command: str) -> None:
    out, _ = shell.run(command, "--help")
    assert f"Example: oxlo {command}" in " ".join(out.split())
    assert "--json" in out


@pytest.mark.parametrize(
    "arguments", [("pull",), ("show",), ("plan", "x", "--parallel", "0"), ("rm", "a", "b")]
)
def test_wrong_usage_is_exit_code_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    _, err = shell.run(*arguments, code=2)
    assert "Usage" in err


def test_a_model_from_pull_to_rm(shell: Shell, site: stand_in.Hub) -> None:
    out, err = shell.run("pull", "wee")
    assert out == "tiny is here (Q4_K_M, 0 MB): oxlo serve tiny\n"
    assert "tiny:Q4_K_M from own/tiny-GGUF at 11111111: 1 file" in err

    out, _ = shell.run("list", "--json", HF_HUB_OFFLINE="1")
    (tiny,) = [item for item in json.loads(out) if item["id"] == "tiny"]
    assert tiny.pop("created") > 1_700_000_000
    assert tiny == {
        "id": "tiny",
        "object": "model",
        "owned_by": "own",
        "kind": "chat",
        "status": "stopped",
        "context_length": 2048,
        "price_usd": 0.001,
        "display_name": "A tiny model",
    }

    out, _ = shell.run("show", "tiny", "--json")
    shown = json.loads(out)
    assert shown["manifest"]["revision"] == "1" * 40
    assert shown["aliases"] == ["wee"]
    assert Path(shown["path"]).read_bytes() == gguf_bytes(4000)

    out, err = shell.run("rm", "tiny", "--json")
    assert json.loads(out) == {"model": "tiny", "freed": 4000}
    assert err == ""
    out, _ = shell.run("list", "--json")
    assert "tiny" not in [item["id"] for item in json.loads(out)]
    _, err = shell.run("rm", "tiny", code=1)
    assert err.startswith("oxlo: tiny has not been pulled")


def test_list_shows_what_is_here_and_all_shows_the_rest(shell: Shell) -> None:
    shell.run("pull", "tiny", "--quiet")
    here, _ = shell.run("list")
    assert "A tiny model" in here and "mistral-7b" not in here
    known, _ = shell.run("list", "--all")
    for row in ("mistral-7b", "whisper-large-v3", "oxlo-image-pro"):
        assert any(line.startswith(row) and "not here" in line for line in known.splitlines()), row
    assert any(line.startswith("deepseek-v3.2") and "refused" in line for line in known.splitlines())


def test_show_marks_what_is_not_confirmed(shell: Shell) -> None:
    out, _ = shell.run("show", "mistral-7b")
    assert "(memory)" in next(line for line in out.splitlines() if line.startswith("shape"))
    assert "4.4 GB (default)" in out
    assert "at openrouter" in out and "2026-08-21" in out
    out, _ = shell.run("show", "tiny")
    assert "(unconfirmed)" in next(line for line in out.splitlines() if line.startswith("build Q4_K_M"))


def test_pull_as_json_is_one_event_a_line(shell: Shell) -> None:
    out, err = shell.run("pull", "tiny", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["chosen", "progress", "progress", "pulled"]
    assert events[0]["missing"] == 4000
    assert events[-1]["model"] == "tiny"
    assert err == ""


def test_a_failed_pull_is_one_line_and_exit_code_1(shell: Shell, site: stand_in.Hub) -> None:
    site.repositories["own/tiny-GGUF"].gated = True
    out, err = shell.run("pull", "tiny", "--quiet", code=1)
    assert out == ""
    assert err.startswith("oxlo: own/tiny-GGUF is gated") and err.count("\n") == 1
    _, err = shell.run("pull", "tiny", "--quiet", code=1, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in err


def test_a_token_opens_a_gated_repository(shell: Shell, site: stand_in.Hub) -> None:
    site.repositories["own/tiny-GGUF"].gated = True
    site.tokens.add("hf_mine")
    shell.run("pull", "tiny", "--quiet", HF_TOKEN="hf_mine")


def test_a_bar_is_drawn_in_a_terminal(shell: Shell, site: stand_in.Hub) -> None:
    site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": gguf_bytes(3_000_000)})
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "oxlo_local", "pull", "tiny"],
        cwd=ROOT,
        env={**shell.environ, "TERM": "xterm", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    out, _ = process.communicate(timeout=50)
    drawn = os.read(ours, 1_000_000).decode()
    os.close(ours)
    assert process.returncode == 0
    assert out.startswith(b"tiny is here")
    assert "fetching tiny-Q4_K_M.gguf" in drawn and "checking tiny-Q4_K_M.gguf" in drawn
    assert "3.0/3.0 MB" in drawn


def test_ctrl_c_says_what_is_kept(shell: Shell, site: stand_in.Hub, tmp_path: Path) -> None:
    content = gguf_bytes(CHUNK + 1_000_000)
    site.repositories["own/tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": content})
    site.stall_at["tiny-Q4_K_M.gguf"] = CHUNK + 400_000
    process = shell.start("pull", "tiny")
    assert site.stalled.wait(30)
    until(
        lambda: any(path.stat().st_size == CHUNK for path in (tmp_path / "cache").rglob("*.oxlo.incomplete"))
    )
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert "stopped: 10 MB of 11 MB are kept, the same command goes on" in err
    assert "Traceback" not in err
    out, _ = shell.run("rm", "tiny")
    assert out == "tiny is removed, 10 MB freed\n"


def test_plan_shows_the_sum_without_having_the_model(shell: Shell) -> None:
    out, _ = shell.run("plan", "qwen2.5-0.5b", "--ctx", "2048", "--parallel", "2")
    assert "weights 491 MB + KV cache 50 MB (2 sequences x 2,048 tokens, f16)" in out
    out, _ = shell.run("plan", "qwen2.5-0.5b:q8_0", "--kv-type", "q8_0", "--json")
    answer = json.loads(out)
    assert (answer["fits"], answer["model"], answer["kv_type"]) == (True, "qwen2.5-0.5b:q8_0", "q8_0")
    assert answer["total"] == sum(answer[part] for part in ("weights", "kv", "buffers", "process"))
    assert answer["machine"]["cores"] >= 1


def test_plan_of_what_does_not_fit_is_exit_code_1(shell: Shell) -> None:
    out, err = shell.run("plan", "tiny:q8_0", code=1)
    assert out == ""
    assert err.startswith("oxlo: tiny:q8_0 does not fit: weights 9000.0 GB")
    out, _ = shell.run("plan", "tiny:Q8_0", "--json", code=1)
    assert json.loads(out)["fits"] is False


def test_plan_of_a_local_file_reads_its_header(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf_bytes(50_000, context_length=512))
    out, _ = shell.run("plan", str(path), "--json")
    answer = json.loads(out)
    assert (answer["weights"], answer["ctx"]) == (50_000, 512)


def test_a_model_that_a_server_runs_is_not_removed(
    shell: Shell, shared: Path, start_server: StartServer
) -> None:
    path = shared / "models" / "stories260K.gguf"
    shell.run("pull", str(path), "--quiet")
    start_server(str(path), home=shell.home)

    out, _ = shell.run("list", "--json")
    assert next(item["status"] for item in json.loads(out) if item["id"] == "stories260K") == "ready"
    _, err = shell.run("rm", "stories260K", code=1)
    assert err == "oxlo: stories260K is ready in a running server; stop it first, or use --force\n"
    shell.run("rm", "stories260K", "--force")
    assert path.exists()
