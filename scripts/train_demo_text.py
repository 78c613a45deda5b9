#!/usr/bin/env python3
"""Trains oxlo-demo, the embedded chat model, from text that it makes itself, and scores it.

    scripts/train_demo_text.py                    all steps: tokenizer, train, export, eval (100 minutes of training)
    scripts/train_demo_text.py eval               the score of the committed file on the held-out questions
    scripts/train_demo_text.py eval --held-out scripts/demo_text/fresh.toml
    scripts/train_demo_text.py --check-overlap    what is left out of training because it is near to a held-out question

A run that was stopped goes on from its checkpoint in --work when started again. Needs torch, tokenizers, gguf,
jinja2 and llama-cpp-python.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from demo_training import command_line, parsed, say  # noqa: E402  # after the path that leads to it

HELD_OUT = ROOT / "scripts" / "demo_text" / "held_out.toml"
LEFT_OUT_SHARE = 0.0005  # of the conversations, at most, may hold a prompt near to a held-out question
STEPS = ("tokenizer", "train", "export", "eval")


def arguments() -> argparse.Namespace:
    """The command line."""
    others = {"data": "prints samples", "commands": "prints what it can say"}
    parser = command_line(__doc__, STEPS, others, "oxlo-demo.gguf", "auto, cpu, cuda, mps")
    parser.add_argument(
        "--minutes", type=float, default=100.0, help="minutes of training in all (default 100)"
    )
    parser.add_argument(
        "--check-overlap",
        action="store_true",
        help="compare the held-out questions with the training prompts and end",
    )
    parser.add_argument(
        "--conversations",
        type=int,
        default=200_000,
        help="how many the overlap check looks at (default 200000)",
    )
    parser.add_argument(
        "--held-out", type=Path, default=HELD_OUT, help="the questions, as in scripts/demo_text/held_out.toml"
    )
    return parsed(parser)


def check_overlap(seed: int, count: int, path: Path) -> int:
    """Prints which prompts are near to a held-out question, and so left out of the training; exit code 1 if that are
    many: the text knows a question then, where a rare chain of synonyms is to be expected.
    """
    from demo_text.conversations import conversation
    from demo_text.held_out import held_out, overlaps

    questions = held_out(path)
    found = overlaps(questions, (conversation(seed, number) for number in range(count)))
    for question, prompt in found:
        print(f"{question!r} is too near to the prompt {prompt!r}")
    print(
        f"{len(questions)} held-out questions; {len(found)} prompts of {count} conversations are left out of training"
    )
    return 1 if len(found) > count * LEFT_OUT_SHARE else 0


def print_samples(seed: int) -> None:
    """A look at the training text."""
    from demo_text.conversations import conversation
    from demo_text.rendering import render

    for number in range(20):
        made = conversation(seed, number)
        print(render(made.messages, made.tools))


def print_commands() -> None:
    """Every command line that the model is taught."""
    from demo_text.conversations import commands

    print("\n".join(commands()))


def make_tokenizer(seed: int, path: Path) -> None:
    """Learns the tokenizer from the first conversations."""
    from demo_text.conversations import conversation
    from demo_text.model import Shape
    from demo_text.rendering import render
    from demo_text.tokens import train_tokenizer

    say("tokenizer: reading 30,000 conversations")
    texts = (
        render(made.messages, made.tools) for made in (conversation(seed, number) for number in range(30_000))
    )
    tokenizer = train_tokenizer(texts, Shape().vocabulary)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    say(f"tokenizer: {tokenizer.get_vocab_size()} tokens in {path}")


def run_training(given: argparse.Namespace, tokenizer_path: Path, checkpoint: Path) -> None:
    """Trains, or goes on training, up to the minutes given."""
    import torch
    from demo_text.model import Llama, Shape
    from demo_text.tokens import load_tokenizer
    from demo_text.train import Plan, train

    kind = given.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    torch.set_num_threads(given.threads or os.cpu_count() or 1)
    shape = Shape()
    say(
        f"train: {Llama(shape).parameter_count() / 1e6:.2f} M parameters on {kind} for {given.minutes:.0f} minutes"
    )
    # a GPU is kept busy only by larger batches, and those bear a higher rate
    batch, rate = (3072, 4e-3) if kind == "cpu" else (12_288, 6e-3)
    plan = Plan(given.seed, given.minutes, torch.device(kind), batch_tokens=batch, peak_rate=rate)
    _, progress = train(plan, shape, load_tokenizer(tokenizer_path), checkpoint)
    say(
        f"train: {progress.tokens / 1e6:.1f} M tokens in {progress.step} steps, {progress.conversations} conversations"
    )


def export(tokenizer_path: Path, checkpoint: Path, out: Path) -> None:
    """Writes the GGUF from the checkpoint."""
    import torch
    from demo_text.export import write_gguf
    from demo_text.model import Shape
    from demo_text.tokens import load_tokenizer

    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    count = sum(tensor.numel() for tensor in weights.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(out, weights, Shape(), load_tokenizer(tokenizer_path), f"{count / 1e6:.1f}M")
    say(f"export: {out}, {out.stat().st_size / 1e6:.2f} MB")


def evaluate(out: Path, questions: Path) -> int:
    """Prints the wrong answers and the score; exit code 1 under 80 %."""
    from demo_text.evaluate import score
    from demo_text.held_out import held_out

    right, wrong = score(out, held_out(questions))
    for question, said in wrong:
        asked = question.conversation.messages[-1]["content"]
        print(f"wrong: {asked!r} -> {said!r}; must {question.must}, must not {question.must_not}")
    total = right + len(wrong)
    print(f"{right} of {total} held-out questions right: {100 * right / total:.1f} %")
    return 0 if right >= 0.8 * total else 1


def main() -> int:
    """Runs the steps named, in their order."""
    given = arguments()
    if given.check_overlap:
        return check_overlap(given.seed, given.conversations, given.held_out)
    tokenizer, checkpoint = given.work / "tokenizer.json", given.work / "checkpoint.pt"
    steps = given.steps or STEPS
    if "data" in steps:
        print_samples(given.seed)
    if "commands" in steps:
        print_commands()
    if "tokenizer" in steps and not (tokenizer.exists() and checkpoint.exists()):
        make_tokenizer(given.seed, tokenizer)
    if "train" in steps:
        run_training(given, tokenizer, checkpoint)
    if "export" in steps:
        export(tokenizer, checkpoint, given.out)
    return evaluate(given.out, given.held_out) if "eval" in steps else 0


if __name__ == "__main__":
    sys.exit(main())
