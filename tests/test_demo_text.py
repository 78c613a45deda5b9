"""oxlo-demo: it teaches only commands that exist, was not trained on its exam, and passes it from the shipped file."""

import shlex
import subprocess
import sys
import tomllib
from functools import cache, partial
from pathlib import Path

import pytest
import typer.main

from oxlo_local.cli import app
from oxlo_local.gguf import read_header

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train_demo_text.py"
GGUF = ROOT / "oxlo_local" / "embedded" / "oxlo-demo.gguf"


def train_demo_text(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the training script in a process of its own."""
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@cache
def utterable() -> tuple[str, ...]:
    """Every command line that an answer of the training text holds, its slots filled."""
    done = train_demo_text("commands")
    assert done.returncode == 0, done.stderr
    return tuple(done.stdout.splitlines())


def refusal(line: str) -> str | None:
    """Why the CLI would not take the command line `oxlo …`, or None; nothing is run."""
    words = shlex.split(line)[1:]
    command, path = typer.main.get_command(app), "oxlo"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        below = command.commands
        if words[0] not in below:
            return f"`{path}` has no command {words[0]!r}"
        path, command = f"{path} {words[0]}", below[words.pop(0)]
    if words == ["--help"]:
        return None
    try:
        command.make_context(path, words)
    except Exception as error:
        return f"`{line}`: {error}"
    return None


def test_every_command_that_the_model_can_say_exists() -> None:
    lines = utterable()
    assert len(lines) > 30
    assert [reason for reason in map(refusal, lines) if reason] == []


@pytest.mark.parametrize(
    "line", ["oxlo dictate a.mp3", "oxlo serve --cores 2", "oxlo keys frame ID", "oxlo plan"]
)
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    assert refusal(line) is not None


def test_prompts_near_to_a_held_out_question_are_few_and_left_out_of_training() -> None:
    done = train_demo_text("--check-overlap", "--conversations", "15000")
    assert done.returncode == 0, done.stdout + done.stderr
    questions = int(done.stdout.split(" held-out questions")[0].splitlines()[-1])
    assert questions >= 100


def test_a_question_that_the_training_text_knows_would_be_noticed(tmp_path: Path) -> None:
    known = tmp_path / "known.toml"
    known.write_text('[[question]]\nask = "And the capital of Norway?"\nmust = ["Oslo"]\n')
    done = train_demo_text("--check-overlap", "--conversations", "15000", "--held-out", str(known))
    assert done.returncode == 1
    assert "too near" in done.stdout


def test_the_file_is_small_enough_to_ship() -> None:
    assert 1_000_000 < GGUF.stat().st_size <= 10_000_000


def test_the_card_describes_the_shipped_file_and_its_exams() -> None:
    header = read_header(GGUF)
    number = partial(header.number, default=0)
    asked = {
        name: len(tomllib.loads((SCRIPT.parent / "demo_text" / name).read_text("utf-8"))["question"])
        for name in ("held_out.toml", "fresh.toml")
    }
    card = GGUF.with_suffix(".md").read_text("utf-8")
    for claim in (
        f"{header.architecture}: {number('block_count')} layers, width {number('embedding_length')}, "
        f"{number('attention.head_count')} heads ({number('attention.head_count_kv')} for keys and values), "
        f"SwiGLU {number('feed_forward_length')}",
        f"{header.vocab_size:,} tokens",
        f"{number('context_length'):,} tokens",
        f"{GGUF.stat().st_size / 1e6:.1f} MB",
        *(f"{name}`: {count}" for name, count in asked.items()),
        "A demonstration, not a general assistant",
    ):
        assert claim in card, claim


def test_the_shipped_file_answers_four_of_five_held_out_questions() -> None:
    pytest.importorskip("llama_cpp")
    done = train_demo_text("eval")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "held-out questions right" in done.stdout
