"""What `oxlo list`, `show`, `rm` and `plan` say of models that are here, elsewhere, or too large."""

import json
from pathlib import Path

from tests.cli.shell import Shell
from tests.conftest import StartServer
from tests.hub import gguf_bytes


def test_list_shows_what_is_here_and_all_shows_the_rest(shell: Shell) -> None:
    shell.run("pull", "tiny", "--quiet")
    here, _ = shell.run("list")
    assert "A tiny model" in here and "mistral-7b" not in here
    known, _ = shell.run("list", "--all")
    for row in ("mistral-7b", "whisper-large-v3", "oxlo-image-pro"):
        assert any(line.startswith(row) and "not here" in line for line in known.splitlines()), row
    assert any(line.startswith("deepseek-v3.2") and "refused" in line for line in known.splitlines())


def test_a_files_own_name_for_itself_is_shown_and_not_obeyed(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf_bytes(4000, name="[/red] \x1b]0;mine\x07"))
    shell.run("pull", str(path), "--quiet")
    for command in (("list",), ("show", "mine")):
        out, _ = shell.run(*command)
        assert "[/red] \\x1b]0;mine\\x07" in out and "\x1b" not in out


def test_show_marks_what_is_not_confirmed(shell: Shell) -> None:
    out, _ = shell.run("show", "mistral-7b")
    assert "(memory)" in next(line for line in out.splitlines() if line.startswith("shape"))
    assert "4.4 GB (default)" in out
    assert "at openrouter" in out and "2026-08-21" in out
    assert "type text" not in out, "how options are told apart on the wire is nobody's business"
    out, _ = shell.run("show", "tiny")
    assert "(unconfirmed)" in next(line for line in out.splitlines() if line.startswith("build Q4_K_M"))


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


def test_plan_of_a_repository_says_what_to_do(shell: Shell) -> None:
    _, err = shell.run("plan", "hf:own/tiny-GGUF:Q4_K_M", code=1)
    assert err.startswith(
        "oxlo: hf:own/tiny-GGUF:Q4_K_M is a repository; `oxlo pull hf:own/tiny-GGUF:Q4_K_M`"
    )


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
