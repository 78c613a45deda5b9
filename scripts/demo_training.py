"""The command line that the training scripts of the three demo models share."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "oxlo_local" / "embedded"
SEED = 20261123


def command_line(
    about: str | None,
    steps: Sequence[str],
    others: Mapping[str, str],
    out: str,
    devices: str = "auto, cpu, cuda",
) -> argparse.ArgumentParser:
    """A parser that knows the steps, and what every training asks.

    `steps` make and score the model, in their order; `others` are told apart by what they do. `out` is the name of what
    is made, beside which `--work` is named.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(known=(*steps, *others))
    told = "".join(f", {step} ({what})" for step, what in others.items())
    parser.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help=f"of {', '.join(steps)}{told}; default: the first {len(steps)}",
    )
    parser.add_argument("--device", default="auto", help=f"{devices} (default auto)")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads and processes (default: all cores)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of data and weights")
    work = ROOT / "build" / Path(out).stem
    parser.add_argument("--work", type=Path, default=work, help="folder of data and checkpoints")
    parser.add_argument("--out", type=Path, default=EMBEDDED / out, help="what is made")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; an unknown step ends the program with a word on it."""
    given = parser.parse_args()
    for step in given.steps:
        if step not in given.known:
            parser.error(f"unknown step {step!r}: choose from {', '.join(given.known)}")
    return given


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)
