"""llama-batched-bench: the same prompts and answers without HTTP, text, ledger or sampling.

Its tokens are random and nobody draws from its logits, so it is a floor for the time and not a server: it pays neither
for sampling (0.3-0.6 ms a token over a 150 k vocabulary) nor for anything that arrives unevenly.
"""

import subprocess

import msgspec
from msgspec import Struct

from race.loads import Figures, Sizes
from race.peer import Peer, Shape, floor_arguments
from race.racers import Cores


class _Line(Struct, frozen=True):
    t: float
    pp: int
    tg: int
    pl: int
    speed_pp: float
    speed_tg: float


class NoFloor(Exception):
    """llama-batched-bench did not say what it took; the message has its last words."""


def figures_of(output: str) -> Figures:
    """The figures of its one line of JSON, named like a server's. Raises NoFloor when there is none."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise NoFloor(f"llama-batched-bench printed no figures: {output[-300:]}")
    line = msgspec.json.decode(lines[-1], type=_Line)
    answers = line.tg * line.pl
    return {
        "all_tokens_per_second": (line.pp * line.pl + answers) / line.t,
        "tokens_per_second": answers / line.t,
        "prefill_per_second": line.speed_pp,
        "decode_per_second": line.speed_tg,
    }


def run(peer: Peer, shape: Shape, sizes: Sizes, clients: int, on: Cores) -> Figures:
    """Run it once, on the servers' cores. Raises NoFloor."""
    assert peer.floor is not None
    command = [str(peer.floor), *floor_arguments(shape, sizes.prompt, sizes.answer, clients)]
    with on.starting():
        process = subprocess.Popen(
            command, env=peer.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    output, words = process.communicate()
    if process.returncode:
        raise NoFloor(f"llama-batched-bench ended with {process.returncode}: {words[-300:]}")
    return figures_of(output)
