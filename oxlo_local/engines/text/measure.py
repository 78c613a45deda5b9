"""What this machine computes how fast, measured once at load: a few tokens in one graph, or in one graph each.

One graph for all reads the weights once, which is the point of batching. But a CPU's kernels are written for one row or
for many: on a core with AVX-512, two rows of a 150 M model in Q8_0 took 30 ms where one took 7, and only from eight on
was one graph faster. GPUs do not show it. So it is not guessed; and neither is what it costs to check a guess, which
is a graph of several rows of one sequence.
"""

import time
from collections.abc import Sequence

from oxlo_local.engines.text.batcher import Piece
from oxlo_local.engines.text.guess import ROWS, Costs
from oxlo_local.engines.text.llama import Llama

SIZES = (2, 4)  # rows at which the two are compared
NEVER_ALONE = 8  # from here on one graph, whatever the kernels
ROUNDS = 2
MORE_ROUNDS = 5  # of what is decided by in every step
PATIENCE = 2.0  # seconds for all of these; what has not been measured then follows from what has


def fewest_together(llama: Llama, slots: int) -> int:
    """From how many generating sequences on one graph for all pays. Leaves the cache empty."""
    token = max(0, llama.eos)
    for size in SIZES:
        if size > slots:
            break
        rows = [Piece(slot, 0, 1, "last") for slot in range(size)]
        if _fastest(llama, [rows], token) <= _fastest(llama, [[row] for row in rows], token):
            return size
    return NEVER_ALONE


def costs(llama: Llama, together: int) -> Costs:
    """Seconds of graphs by the rows of one sequence. Leaves the cache empty."""
    token, begun = max(0, llama.eos), time.perf_counter()
    found: list[tuple[int, float]] = []
    for rows in (1, *ROWS):
        if rows > (llama.options.batch or 1) or (found and time.perf_counter() - begun > PATIENCE):
            break
        found.append((rows, _fastest(llama, [[Piece(0, 0, rows, "all")]], token, MORE_ROUNDS)))
    return Costs(found, together)


def _fastest(llama: Llama, graphs: Sequence[Sequence[Piece]], token: int, rounds: int = ROUNDS) -> float:
    """Seconds of the fastest of some rounds, the first of which only warms up; fewer where one takes long."""
    seconds = []
    for _ in range(1 + rounds):
        begun = time.perf_counter()
        for graph in graphs:
            llama.decode(graph, lambda _: [token] * max(ROWS))
            llama.wait()
        seconds.append(time.perf_counter() - begun)
        for graph in graphs:
            for piece in graph:
                llama.clear(piece.slot)
        if len(seconds) > ROUNDS and sum(seconds) > PATIENCE / len(ROWS):
            break
    return min(seconds[1:])
