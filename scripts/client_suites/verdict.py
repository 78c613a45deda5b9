"""What a suite's results mean: which failures are known abilities of a tiny model, and which are the server's fault.

A failing test counts as *ability* only where each of its exchanges was answered, and well formed: a fault on the wire
or a refusal makes it *protocol*, whatever else is wrong. Abilities are in expected.toml, by name, each with its reason
and, where the API can put the answer into a model's mouth, with the dictation under which the test must pass.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from client_suites.judge import faults
from client_suites.wire import Exchange, Members


@dataclass(frozen=True)
class Result:
    """One test. `outcome` is passed, failed or skipped; `words` are what its runner said."""

    test: str
    outcome: str
    words: str = ""


@dataclass(frozen=True)
class Ability:
    """A failure that is known. `dictate` = members for each of its requests; `refused` = an error code it may meet."""

    suite: str
    test: str
    why: str
    dictate: Sequence[Members] = ()
    refused: str = ""


@dataclass
class Verdict:
    """A suite's tests by what became of them, each with a line that says why."""

    suite: str
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    ability: dict[str, str] = field(default_factory=dict)
    protocol: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)

    @property
    def as_expected(self) -> bool:
        """Whether nothing is to be looked at."""
        return not self.protocol and not self.unexpected


def read_expected(path: Path) -> list[Ability]:
    """The known failures."""
    entries = tomllib.loads(path.read_text("utf-8"))["ability"]
    return [
        Ability(
            entry["suite"],
            test,
            entry["why"],
            [json.loads(members) for members in entry.get("dictate", ())],
            entry.get("refused", ""),
        )
        for entry in entries
        for test in entry["tests"]
    ]


def read_junit(path: Path) -> list[Result]:
    """Results as pytest and node's test runner write them. Names: `Class::test` or the test's title."""
    results = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        parts = case.get("classname", "").split(".")[1:]
        outcome, words = "passed", ""
        for kind, meaning in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            if (found := case.find(kind)) is not None:
                outcome, words = meaning, found.get("message") or (found.text or "").strip()
                break
        results.append(Result("::".join([*parts, case.get("name", "")]), outcome, words))
    return results


def wire_faults(exchanges: Iterable[Exchange]) -> dict[str, list[str]]:
    """What was ill formed on the wire, by test."""
    found: dict[str, list[str]] = {}
    for exchange in exchanges:
        for words in faults(exchange):
            found.setdefault(exchange.test, []).append(f"{exchange.method} {exchange.path}: {words}")
    return found


def refusals(exchanges: Iterable[Exchange], allowed: str = "") -> list[str]:
    """Errors that a test was answered, in a line each, but for those with the code `allowed`."""
    found = []
    for exchange in exchanges:
        if exchange.status < 400:
            continue
        error = json.loads(exchange.answered)["error"]
        if error["code"] != allowed:
            found.append(f"{exchange.status} {error['code']} ({error['param']}): {error['message'][:200]}")
    return found


def judge_suite(
    suite: str, results: Sequence[Result], exchanges: Sequence[Exchange], expected: Mapping[str, Ability]
) -> Verdict:
    """What became of a suite. `expected` are the failures known for the model that ran, by test."""
    verdict, amiss = Verdict(suite), wire_faults(exchanges)
    for test, words in amiss.items():
        verdict.protocol[test] = words[0]
    for result in results:
        own = [exchange for exchange in exchanges if exchange.test == result.test]
        known = expected.get(result.test)
        if result.outcome == "skipped":
            verdict.skipped[result.test] = result.words
        elif result.test in amiss:
            continue
        elif result.outcome == "passed":
            verdict.passed.append(result.test)
            if known is not None:
                verdict.unexpected[result.test] = "passes now; take it out of expected.toml"
        elif refused := refusals(own, known.refused if known else ""):
            verdict.protocol[result.test] = f"refused: {refused[-1]}; {result.words}"
        elif known is not None:
            verdict.ability[result.test] = known.why
        else:
            verdict.unexpected[result.test] = result.words
    ran = {result.test for result in results}
    for test in expected.keys() - ran:
        verdict.unexpected[test] = "is in expected.toml, and there is no such test"
    return verdict
