"""What `oxlo pull` prints, where, and its exit codes: bars, events, failures, Ctrl-C."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from tests import hub as stand_in
from tests.cli.shell import Shell
from tests.conftest import ROOT, until
from tests.hub import Repository, gguf_bytes

CHUNK = 10 * 1024 * 1024  # huggingface_hub writes to the disk in pieces of this size


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
    _, err = shell.run("pull", "tiny", code=1, HF_HUB_OFFLINE="1")
    assert err.startswith("oxlo: HF_HUB_OFFLINE is set") and err.count("\n") == 1
    _, err = shell.run("pull", "a" * 300, code=1)
    assert err.startswith("oxlo: no model 'aaa") and err.count("\n") == 1


def test_a_model_that_is_not_served_yet_is_not_praised_as_ready(shell: Shell, site: stand_in.Hub) -> None:
    with (shell.home / "models.toml").open("a") as file:
        file.write(
            '[models.spoken]\nkind = "tts"\nrepo = "own/spoken"\ndefault_quant = "float16"\n'
            'files.float16 = { bytes = 5_000, status = "confirmed", files = ["model.bin"] }\n'
        )
    site.repositories["own/spoken"] = Repository({"model.bin": gguf_bytes(5000)})
    out, _ = shell.run("pull", "spoken")
    assert out == "spoken is here (float16, 0 MB): this version of oxlo does not serve it yet\n"


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
