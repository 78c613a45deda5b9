"""What this machine computes how fast, measured once at load: a few tokens in one graph, or in one graph each.

One graph for all reads the weights once, which is the point of batching. But a CPU's kernels are written for one row or
for many: on a core with AVX-512, two rows of a 150 M model in Q8_0 took 30 ms where one took 7, and only from eight on
was one graph faster. GPUs do not show it. So it is not guessed; and neither is what it costs to check a guess, which
is a graph of several rows of one sequence.

What a token costs far into a prompt is not measured, since a cache would have to be filled for that: it follows from
the model's shape (`halfway`).
"""

import math
import time
from collections.abc import Callable, Sequence

from oxlo_local.engines.text.batcher import Piece
from oxlo_local.engines.text.guess import Costs
from oxlo_local.engines.text.llama import Llama

SIZES = (2, 4)  # rows at which the two are compared
NEVER_ALONE = 8  # from here on one graph, whatever the kernels
ROUNDS = 2
MORE_ROUNDS = 5  # of what is decided by in every step
MOST_TELLING = (16, 8, 32, 4, 2)  # rows of a guess whose cost is measured (guess.ROWS) while PATIENCE lasts
PATIENCE = 1.0  # seconds; what has not been measured then follows from what has
ATTENTION_ON_CPU = 2.0  # times as long as ggml's matrix products for as many operations


def halfway(llama: Llama) -> float:
    """The depth in tokens at which a prompt's token costs twice what it does at the beginning.

    It is inf for recurrent and hybrid models, in which few layers look back, and where the shape is not understood.
    """
    return math.inf if llama.recurrent else halfway_of(llama.meta, cpu=llama.device == "cpu")


def halfway_of(meta: Callable[[str], str | None], *, cpu: bool) -> float:
    """The depth in tokens at which attention costs a prompt's token as much as all matrices do; inf where unknown.

    `meta` reads the model file's metadata. A token meets each number of a layer's matrices once (of its experts', those
    that are used), and of each token before it one key and one value in every head. Windows are taken for whole, and
    matrices beside attention and feed-forward are left out; models in which layers differ are unknown.
    """
    architecture = meta("general.architecture")

    def number(key: str, default: int = 0) -> int:
        given = meta(f"{architecture}.{key}") or ""
        return int(given) if given.isdecimal() else default

    width, heads = number("embedding_length"), number("attention.head_count")
    forward = number("feed_forward_length")
    if experts := number("expert_used_count"):
        forward = experts * number("expert_feed_forward_length", forward)
        forward += number("expert_shared_feed_forward_length")
    if not (width and heads and forward):
        return math.inf
    met = number("attention.key_length", width // heads) + number("attention.value_length", width // heads)
    kv_heads = number("attention.head_count_kv", heads)
    matrices = width * (heads + kv_heads) * met + 3 * width * forward
    return matrices / (heads * met) / (ATTENTION_ON_CPU if cpu else 1.0)


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
    begun = time.perf_counter()
    found = [(1, seconds(llama, 1))]
    for rows in MOST_TELLING:
        if rows <= (llama.options.batch or 1) and time.perf_counter() - begun < PATIENCE:
            found.append((rows, seconds(llama, rows)))
    return Costs(sorted(found), together)


def seconds(llama: Llama, rows: int) -> float:
    """Of a graph with so many rows of one sequence: the fastest of some, fewer where one takes long."""
    took: list[float] = []
    token = max(0, llama.eos)
    while len(took) <= MORE_ROUNDS and sum(took) < PATIENCE / len(MOST_TELLING):
        took.append(_time(llama, [[Piece(0, 0, rows, "all")]], token))
    return min(took)


def _fastest(llama: Llama, graphs: Sequence[Sequence[Piece]], token: int) -> float:
    """Seconds of the fastest of some rounds, the first of which only warms up."""
    return min([_time(llama, graphs, token) for _ in range(1 + ROUNDS)][1:])


def _time(llama: Llama, graphs: Sequence[Sequence[Piece]], token: int) -> float:
    begun = time.perf_counter()
    for graph in graphs:
        llama.decode(graph, lambda _: [token] * max(MOST_TELLING))
        llama.wait()
    took = time.perf_counter() - begun
    for graph in graphs:
        for piece in graph:
            llama.clear(piece.slot)
    return took
