"""Stock clients, whole, against a server of this checkout.

The suites have environments of their own (made the first time) and run against `oxlo serve` with a fresh data folder,
through a proxy that keeps every exchange and holds it against OpenAI's shapes. A test that fails is *protocol* where
anything on its wire is ill formed or refused, *ability* where expected.toml says why a model of 4 M weights cannot do
it, and otherwise unexpected. Abilities are then run once more with their answers dictated, and have to pass.

Exit status 1 for a protocol failure, an unexpected failure, or an expected one that passes. With MODEL (a name or a
GGUF file) another chat model runs and nothing is expected to fail; EMBEDDER is the embedding model (default: random
weights). Images are shown to the chat model where it sees, else to one of random weights.

Example:  scripts/suites --only langchain
          MODEL=qwen-3-8b EMBEDDER=all-minilm scripts/suites --json > suites.json
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import httpx  # noqa: E402  # after the path that leads to this checkout

from client_suites import rooms, verdict  # noqa: E402
from client_suites.wire import Exchange, Wire  # noqa: E402
from oxlo_local import random_model  # noqa: E402
from oxlo_local.errors import OxloError  # noqa: E402
from oxlo_local.launch import LaunchedServer  # noqa: E402
from oxlo_local.random_eye import write_eye  # noqa: E402
from race.racers import clean_environ  # noqa: E402

DEMO, SEEING = "oxlo-demo", "random-seeing"
READY_SECONDS, SUITE_SECONDS, TEST_SECONDS = 300.0, 3600.0, 120
PYTHON = sorted(path.stem.removeprefix("test_") for path in rooms.PYTHON.glob("test_*.py"))
NODE = sorted(path.name.removesuffix(".test.mjs") for path in rooms.NODE.glob("*.test.mjs"))


def command_of(suite: str, results: Path, only: Sequence[str]) -> tuple[list[str], Path]:
    """How a suite is run, and where. `only` names tests."""
    if suite in NODE:
        command = [str(rooms.node_room()), "--test", f"--test-timeout={TEST_SECONDS * 1000}"]
        command += [f"--test-name-pattern=/^{_literally(test)}$/" for test in only]
        command += ["--test-reporter=junit", f"--test-reporter-destination={results}", f"{suite}.test.mjs"]
        return command, rooms.NODE
    file = f"test_{suite}.py"
    command = [
        str(rooms.python_room(suite)),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={results}",
    ]
    command += [f"--timeout={TEST_SECONDS}", "-c", str(rooms.PYTHON / "pytest.ini")]
    return command + ([f"{file}::{test}" for test in only] or [file]), rooms.PYTHON


def _literally(title: str) -> str:
    return "".join(letter if letter.isalnum() or letter == " " else f"\\{letter}" for letter in title)


class Stage:
    """A running server with its proxy, and what suites are told of them."""

    def __init__(self, wire: Wire, names: Mapping[str, str]) -> None:
        self._wire, self._names = wire, names

    def run(self, suite: str, only: Sequence[str] = ()) -> tuple[list[verdict.Result], list[Exchange]]:
        """Run a suite, or some of its tests: their results, and the exchanges that they had."""
        begun = len(self._wire.exchanges)
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.xml"
            command, where = command_of(suite, results, only)
            output = Path(folder) / "output"
            with output.open("wb") as sink:
                subprocess.run(
                    command,
                    cwd=where,
                    env=self._environ(suite),
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    timeout=SUITE_SECONDS,
                )
            if not results.is_file() or not (read := verdict.read_junit(results)):
                tail = "\n".join(output.read_text("utf-8", "replace").splitlines()[-20:])
                raise rooms.Missing(f"{suite} ran no test:\n{tail}")
        ran = [result for result in read if not only or result.test in only]
        return ran, self._wire.exchanges[begun:]

    def _environ(self, suite: str) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("OXLO_", "OPENAI_"))
        }
        return {
            **kept,
            "OPENAI_BASE_URL": f"{self._wire.url}/{suite}/v1",
            "OPENAI_API_KEY": "none-needed",
            **{f"{use.upper()}_MODEL": name for use, name in self._names.items()},
            "WIRE": f"{self._wire.url}/{suite}",
        }


def dictate(
    stage: Stage, wire: Wire, suite: str, abilities: Mapping[str, verdict.Ability], found: verdict.Verdict
) -> None:
    """Run the abilities of a suite again with their answers dictated: whatever fails then is no ability."""
    tests = [test for test in found.ability if abilities[test].dictate]
    if not tests:
        return
    wire.dictations = {(suite, test): abilities[test].dictate for test in tests}
    results, exchanges = stage.run(suite, tests)
    wire.dictations = {}
    amiss = verdict.wire_faults(exchanges)
    passed = {result.test for result in results if result.outcome == "passed"} - amiss.keys()
    said = {result.test: result.words for result in results}
    for test in set(tests) - passed:
        words = " ".join([*amiss.get(test, ()), said.get(test, "it did not run")])
        found.protocol[test] = f"fails with its answer dictated: {words}"
        del found.ability[test]


def run(options: argparse.Namespace, folder: Path) -> list[verdict.Verdict]:
    """Serve, run the suites that were asked for, and say what became of them."""
    home = folder / "home"
    chat, embedder = os.environ.get("MODEL") or DEMO, os.environ.get("EMBEDDER")
    if not embedder:
        embedder = str(folder / "random-embedder.gguf")
        shape = random_model.Shape(kv_heads=random_model.Shape.heads)  # an encoder shares none
        random_model.write(Path(embedder), "bert", shape, pooling="mean")
    expected = verdict.read_expected(rooms.HERE / "expected.toml") if chat == DEMO else []
    found = []
    arguments = [chat, embedder, str(seeing_model(folder)), "--port", "0", "--log-level", "error"]
    with LaunchedServer(arguments, home / "serve.json", clean_environ(home)) as server:
        address = server.wait_ready(READY_SECONDS)
        names = ready(address.url)
        with Wire(address.url) as wire:
            stage = Stage(wire, names)
            for suite in options.only or [*PYTHON, *NODE]:
                print(f"{suite} …", file=sys.stderr)
                known = {each.test: each for each in expected if each.suite == suite}
                if options.test:
                    known = {test: each for test, each in known.items() if test in options.test}
                results, exchanges = stage.run(suite, options.test)
                judged = verdict.judge_suite(suite, results, exchanges, known)
                dictate(stage, wire, suite, known, judged)
                found.append(judged)
            if options.wire:
                options.wire.write_text("".join(_line(exchange) for exchange in wire.exchanges))
    return found


def seeing_model(folder: Path) -> Path:
    """A model of random weights that sees: its image encoder lies beside it."""
    path = folder / "seeing" / f"{SEEING}.gguf"
    path.parent.mkdir()
    random_model.write(path)
    write_eye(path.with_name(f"mmproj-{SEEING}.gguf"), "pixtral")
    return path


def ready(url: str) -> dict[str, str]:
    """The ids of the models that run, by what they are for; the chat model is asked about images where it sees."""
    listed = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    running = {model["id"]: model for model in listed if model["status"] == "ready"}
    chat = next(id for id, model in running.items() if model["kind"] == "chat" and id != SEEING)
    embedding = next(id for id, model in running.items() if model["kind"] == "embedding")
    return {"chat": chat, "embedding": embedding, "seeing": chat if running[chat]["vision"] else SEEING}


def _line(exchange: Exchange) -> str:
    told = {**asdict(exchange), "asked": exchange.asked.decode(), "answered": exchange.answered.decode()}
    return json.dumps(told, ensure_ascii=False) + "\n"


def show(found: Sequence[verdict.Verdict]) -> None:
    """A table, then every failure by name."""
    row = "{:<16}{:>8}{:>9}{:>10}{:>12}{:>9}".format
    print(row("suite", "passed", "ability", "protocol", "unexpected", "skipped"))
    for each in found:
        kinds = (each.passed, each.ability, each.protocol, each.unexpected, each.skipped)
        print(row(each.suite, *map(len, kinds)))
    for kind in ("ability", "protocol", "unexpected", "skipped"):
        for each in found:
            for test, why in getattr(each, kind).items():
                print(f"{kind}: {each.suite} {test}: {' '.join(why.split())[:300]}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=[*PYTHON, *NODE], help="a suite; may be repeated")
    parser.add_argument(
        "--test", action="append", default=[], help="one test of a suite, by name; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--wire", type=Path, metavar="FILE", help="keep every exchange, one JSON object a line"
    )
    options = parser.parse_args()
    if options.test and len(options.only or ()) != 1:
        parser.error("--test needs one --only SUITE")
    # It warns of clients that leave a stream, as some tests do.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="suites-") as folder:
            found = run(options, Path(folder))
    except (rooms.Missing, OxloError) as error:
        print(f"suites: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2, ensure_ascii=False))
    else:
        show(found)
    return 0 if all(each.as_expected for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
