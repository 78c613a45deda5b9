"""Races this checkout against llama-server, compiled from the same llama.cpp, and llama-batched-bench, the floor.

Both servers run the same GGUF with the same threads, context and slots, as many slots as clients unless --slots says
more; they take turns, the one that waits is stopped, and only ratios inside one round are compared. Models of random
weights are made once, in build/. Loads:

    clients-1, -8, -16, -32   distinct prompts, temperature 0.8: tokens/s, against the floor too
    first-token               one client: time to first token of a new prompt, and of the same one again
    shared                    16 clients sharing 2,000 of 2,100 prompt tokens that nobody has computed yet
    beside-long               short prompts beside one of 8 K tokens
    chunk-64, … chunk-512     the same for our server alone, over chunk sizes (only when named: --only chunk)
    overhead                  32 clients on stories260K, ledger, keys and metrics on: requests/s
    conversations             8 at once, 20 turns each: prefill tokens computed over new ones
    greedy                    greedy answers equal to llama-server's, and in company equal to themselves

What a load has come to is told after each round, on stderr. With --keep FILE the rounds are added to those of earlier
calls, so that a long table can be made in short sittings.

Exit status 1 when a bar is missed, 2 for wrong usage or when no peer is found.

Example:  scripts/bench-peers --rounds 5 --json > race.json
          scripts/bench-peers --only clients,first-token --model 0.5b --keep race.json
          scripts/bench-peers --rounds 0 --keep race.json
"""

import argparse
import asyncio
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from oxlo_local.errors import OxloError  # noqa: E402  # after the path that leads to this checkout
from race import floor, peer, table  # noqa: E402
from race.asking import RaceFailed, Voice, scale_of  # noqa: E402
from race.beside import CHUNKS, Beside, Chunk  # noqa: E402
from race.equality import Greedy, compare  # noqa: E402
from race.kept import Kept, NotKept  # noqa: E402
from race.loads import Clients, FirstToken, Load, Overhead, Shared, Sizes, Track  # noqa: E402
from race.racers import Cores, Racer, Weather, cores, our_server, peer_server, turn_of  # noqa: E402
from race.ratios import merge  # noqa: E402
from race.table import Report, Turn  # noqa: E402
from race.talks import Talks, Tongue  # noqa: E402

MADE = ("150m", "0.5b", "8b", "32b")
NUMBERS = (1, 8, 16, 32)
STORIES = ROOT.parent / "shared" / "models" / "stories260K.gguf"
DEMO = ROOT / "oxlo_local" / "embedded" / "oxlo-demo.gguf"


@dataclass
class Group:
    """Loads that run on the same pair of servers, or on ours `alone`."""

    shape: peer.Shape
    loads: list[Load | Greedy] = field(default_factory=list)
    alone: bool = False


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


# -- what to run ------------------------------------------------------------------------------------------------------


def model_file(name: str, quant: str = "Q8_0") -> Path:
    """The GGUF of --model: one of random weights (made when missing), stories260K, oxlo-demo, or a path."""
    if name in MADE:
        return made(name, quant)
    path = {"stories": STORIES, "demo": DEMO}.get(name, Path(name).expanduser())
    if not path.is_file():
        raise SystemExit(
            f"bench-peers: there is no {path}; --model takes {', '.join(MADE)}, stories, demo or a path"
        )
    return path


def made(shape: str, quant: str) -> Path:
    """A model of random weights in build/."""
    path = ROOT / "build" / f"random-{shape}-{quant.lower()}.gguf"
    if not path.is_file():
        say(f"making {path.relative_to(ROOT)}, once")
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        command = [
            sys.executable,
            "-m",
            "oxlo_local.random_model",
            "--shape",
            shape,
            "--quant",
            quant,
            str(part),
        ]
        subprocess.run(command, check=True, cwd=ROOT)
        part.rename(path)
    return path


def groups(options: argparse.Namespace, sizes: Sizes) -> list[Group]:
    """The chosen loads, by the pair of servers that they run on."""
    model = model_file(options.model, options.quant)
    gpu = {"gpu_layers": options.gpu_layers} if options.gpu_layers is not None else {}
    most = max(options.slots, *options.clients)
    base = peer.Shape(
        model,
        most,
        256 * -(-(sizes.prompt + sizes.answer + 64) // 256),
        threads=options.threads,
        flash_attention=options.flash_attention,
        backend_sampling=options.backend_sampling,
        **gpu,
    )
    long_ctx = 256 * -(-(sizes.long + 256) // 256)
    found = [
        *(Group(replace(base, parallel=max(n, options.slots)), [Clients(n)]) for n in options.clients),
        Group(base, [FirstToken(), Greedy()]),
        Group(
            replace(base, parallel=16, ctx=256 * -(-(sizes.sharing + sizes.answer + 64) // 256)), [Shared()]
        ),
        Group(
            replace(base, parallel=8, ctx=long_ctx, chunk=options.chunk, peer_flags=peer.BESIDE_LONG),
            [Beside(chunk=options.chunk, gpu=options.gpu_layers is not None)],
        ),
        *(
            Group(replace(base, parallel=8, ctx=long_ctx, chunk=chunk), [Chunk(chunk)], alone=True)
            for chunk in CHUNKS
        ),
    ]
    small = STORIES if options.model not in ("stories", "demo") and STORIES.is_file() else None
    speaks = model if options.model in ("stories", "demo") else DEMO if DEMO.is_file() else small
    if small is not None or options.model == "stories":
        found.append(Group(replace(base, model=small or model, parallel=32, ctx=512), [Overhead()]))
    if speaks is not None:
        ctx = 512 if speaks == STORIES else 1024
        shape = replace(base, model=speaks, parallel=8, ctx=ctx, peer_flags=peer.CONVERSATIONS)
        found.append(Group(shape, [Talks(Tongue(speaks))] if chosen("conversations", options) else []))
    for group in found:
        group.loads = [load for load in group.loads if chosen(load.name, options)]
    return [group for group in found if group.loads]


def chosen(name: str, options: argparse.Namespace) -> bool:
    """Whether --only (whole names, or beginnings of them) takes a load."""
    if options.only is None:
        return not name.startswith("chunk-") and (
            options.model != "0.5b" or name in ("clients-1", "clients-16")
        )
    return any(name == each or name.startswith(f"{each}-") for each in options.only.split(","))


# -- running ----------------------------------------------------------------------------------------------------------


@dataclass
class Race:
    """What stays the same over a whole run."""

    options: argparse.Namespace
    sizes: Sizes
    other: peer.Peer
    on: Cores
    home: Path
    kept: Kept

    @contextmanager
    def servers(self, group: Group) -> Iterator[list[Racer]]:
        """The servers over one model, ours first, all stopped."""
        shape, extra = group.shape, shlex.split(self.options.peer_flags)
        name = f"{shape.model.stem}, {shape.parallel} slots of {shape.ctx}"
        name += f", chunks of {shape.chunk}" if shape.chunk else ""
        commands = [shlex.join(["oxlo", "serve", *peer.our_arguments(shape)])]
        if not group.alone:
            commands.append(shlex.join(["llama-server", *peer.peer_arguments(shape, 0, extra)]))
        self.kept.run(name, commands)
        say(f"-- {name}")
        with ExitStack() as stack:
            home = tempfile.mkdtemp(dir=self.home)
            racers = [stack.enter_context(our_server(shape, Path(home), self.on))]
            racers[0].pause()
            if not group.alone:
                racers.append(stack.enter_context(peer_server(self.other, shape, self.on, extra)))
                racers[1].pause()
            yield racers

    def track(self, shape: peer.Shape, racers: Sequence[Racer]) -> Track:
        """How this model counts. Says so when the two servers count the same words differently."""
        with turn_of(racers[0], look=False):
            voice = Voice(shape.model.stem, racers[0].facts().chat)
        scales = []
        for racer in racers:
            with turn_of(racer):
                scales.append(asyncio.run(scale_of(racer, voice)))
        if len(set(scales)) > 1:
            self.kept.note(f"{shape.model.stem}: the servers count the same prompt differently: {scales}")
        return Track(voice, scales[0], self.sizes)

    def round(
        self, load: Load, shape: peer.Shape, track: Track, racers: Sequence[Racer], number: int
    ) -> Turn:
        """One round of a load: the servers take turns, the one that began the last round goes second."""
        told: dict[str, list[Mapping[str, float]]] = {racer.name: [] for racer in racers}
        worst: dict[str, float] = {racer.name: 0.0 for racer in racers}
        for turn in range(load.turns):
            order = racers if (number + turn) % 2 == 0 else list(reversed(racers))
            for racer in order:
                with turn_of(racer, look=load.turns == 1) as weather:
                    told[racer.name].append(asyncio.run(load.run(racer, track, f"{number}.{turn}")))
                worst[racer.name] = max(worst[racer.name], weather.foreign)
                if load.turns == 1:
                    say(weather_line(load.name, racer.name, number, weather, told[racer.name][-1]))
        bare: dict[str, float] = {}
        if isinstance(load, Clients) and self.other.floor is not None:
            bare = floor.run(self.other, shape, track.sizes, load.clients, self.on)
        ours, *theirs = (racer.name for racer in racers)
        return Turn(
            merge(told[ours]),
            merge([each for name in theirs for each in told[name]]),
            bare,
            (worst[ours], max((worst[name] for name in theirs), default=0.0)),
        )

    def greedy(self, load: Greedy, track: Track, racers: Sequence[Racer], number: int) -> Turn:
        """Both servers' answers, compared."""
        answers = []
        for racer in racers:
            with turn_of(racer):
                answers.append(asyncio.run(load.answers(racer, track, str(number))))
        ours, theirs = compare(answers[0], answers[1])
        return Turn(ours, theirs, {})

    def group(self, group: Group) -> None:
        """All rounds of a group: every load once, then all again. Greedy answers are compared in the first one."""
        shape, failed = group.shape, set[str]()
        with self.servers(group) as racers:
            track = self.track(shape, racers)
            for turn in range(self.options.rounds):
                for load in group.loads:
                    if load.name in failed or (isinstance(load, Greedy) and turn > 0):
                        continue
                    number = len(self.kept.rounds(load.name, shape.model.stem))
                    say(f"{load.name}, round {number + 1}")
                    try:
                        if isinstance(load, Greedy):
                            found = self.greedy(load, track, racers, number)
                        else:
                            found = self.round(load, shape, track, racers, number)
                    except* (RaceFailed, OxloError, floor.NoFloor) as errors:
                        failed.add(load.name)
                        why = str(first_of(errors))
                        self.kept.fail(load.name, shape.model.stem, load.bars, why)
                        say(f"   {load.name}: {why}")
                    else:
                        row = self.kept.add(load.name, shape.model.stem, load.bars, found)
                        say(f"   {load.name} over {len(row.rounds)}: {'; '.join(table.lines(row))}")


def first_of(errors: BaseException) -> BaseException:
    """The first of a group of errors, which may hold groups."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def weather_line(load: str, racer: str, number: int, weather: Weather, found: Mapping[str, float]) -> str:
    """What a turn looked like: the other load of the machine before, during and after, and two figures."""
    shown = ", ".join(
        f"{name} {found[name]:.4g}"
        for name in (
            "tokens_per_second",
            "requests_per_second",
            "ttft_p95",
            "short_ttft_p95",
            "asked_over_new",
        )
        if name in found
    )
    return (
        f"   {racer:12} {load} {number + 1}: {shown}; others' CPU {weather.before:.0%} before, "
        f"{weather.foreign:.0%} during, {weather.after:.0%} after"
    )


def options_from(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    about, _, example = (__doc__ or "").partition("\n\nExample:")
    parser = argparse.ArgumentParser(
        prog="scripts/bench-peers",
        description=about,
        epilog=f"Example:{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model", default="150m", help="150m, 0.5b, 8b, 32b (random weights), stories, demo or a path (150m)"
    )
    add("--quant", default="Q8_0", choices=("Q8_0", "F16", "Q4_K_M"), help="of random weights (Q8_0)")
    add(
        "--only",
        metavar="LOAD,…",
        help="loads, or beginnings of their names (all; 0.5b: clients-1, clients-16)",
    )
    add(
        "--rounds",
        type=int,
        default=5,
        help="rounds (5; a bar needs at least that many); 0 with --keep shows it",
    )
    add("--clients", default=",".join(map(str, NUMBERS)), metavar="N,…", help="clients of the clients loads")
    add("--slots", type=int, default=1, help="least slots of the clients loads (as many as clients)")
    add("--threads", type=int, default=1, help="engine threads (1)")
    add("--chunk", type=int, default=256, help="our prefill tokens a step beside running sequences (256)")
    add("--scale", type=float, default=1.0, help="multiplies every length, for trials (1)")
    add("--gpu-layers", type=int, help="layers on the GPU, for both; -1 = all")
    add("--flash-attention", action=argparse.BooleanOptionalAction, help="for both (both decide)")
    add(
        "--backend-sampling",
        action=argparse.BooleanOptionalAction,
        help="for both (ours decides, peer's is off)",
    )
    add("--no-pin", action="store_true", help="let everything run on every core")
    add(
        "--peer-flags",
        default="",
        help="further flags of llama-server, to try out others than the committed ones",
    )
    add("--json", action="store_true", help="every figure of every round, as JSON")
    add(
        "--keep",
        type=Path,
        metavar="FILE",
        help="add the rounds to those in FILE, which each round is written to",
    )
    options = parser.parse_args(arguments)
    try:
        options.clients = tuple(int(number) for number in options.clients.split(","))
    except ValueError:
        parser.error(f"--clients takes numbers such as 1,16, not {options.clients!r}")
    if (
        options.rounds < (options.keep is None)
        or min(options.slots, *options.clients) < 1
        or options.scale <= 0
    ):
        parser.error(
            "--rounds, --clients, --slots and --scale take positive numbers; --rounds 0 goes with --keep"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Race, print, and say by the exit status whether every bar holds."""
    options = options_from(arguments)
    try:
        other = peer.find(os.environ, ROOT)
    except peer.NoPeer as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return 2
    sizes = Sizes() if options.scale == 1 else Sizes().scaled(options.scale)
    begun = Report(table.machine(options.threads), other.version, options.scale, {}, [], [])
    todo = groups(options, sizes) if options.rounds else []
    if options.rounds and not todo:
        print(f"bench-peers: --only {options.only} takes no load; see --help", file=sys.stderr)
        return 2
    try:
        kept = Kept(begun, options.keep)
        with tempfile.TemporaryDirectory() as folder:
            race = Race(options, sizes, other, cores(not options.no_pin), Path(folder), kept)
            for group in todo:
                race.group(group)
    except NotKept as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return 2
    if other.floor is None:
        kept.note("there is no llama-batched-bench beside the peer: nothing was held against the floor")
    if not STORIES.is_file() and options.only is None:
        kept.note(f"{STORIES.name} is not here: the load `overhead` did not run")
    report = kept.report
    if options.json:
        sys.stdout.write(table.as_json(report))
    else:
        table.show(report)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
