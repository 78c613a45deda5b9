"""`oxlo pull`, `list`, `show`, `rm` and `plan`: wrong usage, and one model's whole way."""

import json
from pathlib import Path

import httpx
import pytest

from tests import hub as stand_in
from tests.cli.shell import Shell
from tests.conftest import await_ready, launch
from tests.hub import Repository, gguf_bytes


@pytest.mark.parametrize(
    "arguments", [("pull",), ("show",), ("plan", "x", "--parallel", "0"), ("rm", "a", "b")]
)
def test_wrong_usage_is_exit_code_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    _, err = shell.run(*arguments, code=2)
    assert "Usage" in err


def test_a_model_from_pull_to_rm(shell: Shell) -> None:
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
        "vision": False,
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


def test_a_pulled_model_answers_with_no_network(
    shell: Shell, site: stand_in.Hub, shared: Path, tmp_path: Path
) -> None:
    content = (shared / "models" / "stories260K.gguf").read_bytes()
    site.repositories["karpathy/Stories-GGUF"] = Repository({"stories-F32.gguf": content})
    out, _ = shell.run("pull", "hf:karpathy/Stories-GGUF")
    assert out.startswith("stories is here (F32, 1 MB)")
    asked = len(site.seen)

    server = launch(
        shell.home, tmp_path / "serve.log", ("Stories",), {**shell.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        await_ready(server)
        body = {
            "model": "stories",
            "prompt": "Once upon a time, there was a",
            "max_tokens": 6,
            "temperature": 0,
        }
        answer = httpx.post(f"{server.base_url}/completions", json=body, timeout=30).raise_for_status().json()
    finally:
        server.stop()
    assert answer["model"] == "stories"
    assert answer["choices"][0]["text"].startswith(" little girl")
    assert len(site.seen) == asked, "the hub was not asked again"
