"""Constrained decoding: a grammar says which tokens may come next, and all others lose their logits.

A `Guide` is one sequence's place in its grammar; it lives and is preempted with the sequence. Per token it costs two
things. The mask (which tokens keep the text inside the grammar, one bit a token) is computed by llguidance beside the
decode of the whole batch (`Grammars.beside`): neither holds the interpreter lock. Applying it to a row of logits is one
addition, in place, so that every sampler obeys it: of 0 or of minus infinity, since to pick among mixed bits takes a
processor twenty times as long as to add.

A grammar is compiled beside the steps too, within SECONDS. Compilation cannot be interrupted: one that takes longer is
refused and runs out on a thread of its own, of which there are few. llguidance's own limits bound what a token costs.

llguidance raises nothing while a sequence runs: a matcher goes into an error state, which `restrict` looks for.
"""

import json
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from
from numpy.typing import NDArray

from oxlo_local.calls import Constraint
from oxlo_local.engines.text.toolcalls.values import FORMATS
from oxlo_local.engines.text.unmarked import SLICES
from oxlo_local.engines.weights import Weights
from oxlo_local.errors import OxloError, Unavailable, UnsupportedValue

F32 = NDArray[np.float32]

SECONDS = 1.0  # that a client waits for a compilation
COMPILERS = 4  # compilations at once, those included that nobody waits for any more
NICE = 10  # of a compilation; the decode is what others wait for
KEPT = 64  # compiled grammars
NAMED = ("properties", "patternProperties", "$defs", "definitions")  # schemas by name
VALUES = ("enum", "const", "default", "example", "examples")  # no schemas, whatever they look like
# What eight bits of a mask add to eight logits, for each byte that they may be.
ADDED = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0, -np.inf
).astype(np.float32)
# A space where JSON has room for one, or a line's indentation: with no limit, a lost model would write nothing else.
SPACE = r"( |\n[ \t]{0,40})?"
JSON_OPTIONS = {
    "whitespace_pattern": SPACE,
    "lenient": False,
    "coerce_one_of": False,
    # Without \\u: an escaped name would be taken for one that the schema does not know.
    "json_allowed_escapes": 'nrbtf\\"',
}


@dataclass(frozen=True)
class Frame:
    """A grammar in Lark around a constraint, which it calls `@inside`. `param` is the field that is to blame."""

    lark: str
    inside: Constraint | None
    param: str

    @property
    def key(self) -> tuple[str, ...]:
        """What it is known by, whatever field it is from."""
        return (self.lark, *((self.inside.kind, self.inside.text) if self.inside else ()))


class Guide:
    """Where one sequence is in its grammar. It stays out of the way until `begin`."""

    def __init__(self, matcher: LLMatcher, n_vocab: int, param: str) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._param = param
        # A bit for each token that may come, and what is added to its logit.
        self._mask: NDArray[np.int32] = np.zeros((n_vocab + 31) // 32, np.int32)
        self._added = np.zeros((self._mask.nbytes, 8), np.float32)
        self._known = False  # whether the mask is that of the next token
        self._begun = False

    def copy(self) -> "Guide":
        """Another sequence's place at the same point."""
        return Guide(self._matcher.deep_copy(), self._n_vocab, self._param)

    def begin(self) -> None:
        """From the next token on, the grammar holds: at the answer's start, or when the thinking ends."""
        self._begun = True

    @property
    def begun(self) -> bool:
        return self._begun

    def look_ahead(self) -> None:
        """Compute the next token's mask, if that has not been done."""
        if self._begun and not self._known:
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            np.take(ADDED, self._mask.view(np.uint8), axis=0, out=self._added, mode="clip")
            self._known = True

    def restrict(self, logits: F32) -> None:
        """Set the logits, shape (n_vocab,), of all tokens that may not come next to -inf. Raises UnsupportedValue."""
        if not self._begun:
            return
        self.look_ahead()
        if self._matcher.is_error():
            raise UnsupportedValue(
                f"this constraint became too complex ({_first_line(self._matcher.get_error())}): simplify it",
                param=self._param,
            )
        logits += self._added.ravel()[: self._n_vocab]

    def allows(self, token: int) -> bool:
        """Whether `token` may come next; asked between `restrict` and `accept`."""
        return not self._begun or self._added.ravel()[token] == 0

    def accept(self, token: int) -> None:
        """Go on to the state after `token`."""
        if self._begun:
            self._matcher.consume_token(token)
            self._known = False

    @property
    def complete(self) -> bool:
        """Whether the text is whole and no token can follow."""
        return self._begun and self._matcher.is_stopped() and not self._matcher.is_error()


class Grammars:
    """Compiles constraints for one model's vocabulary, which is read into llguidance's form beside everything else."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._masks = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._tokenizer = self._masks.submit(_tokenizer, weights)
        self._compilers = threading.Semaphore(COMPILERS)
        self._kept: OrderedDict[tuple[str, ...], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, constraint: Constraint | Frame) -> Guide | None:
        """The constraint, if it has been compiled before; does not block."""
        with self._lock:
            matcher = self._kept.get(_key(constraint))
            if matcher is None:
                return None
            self._kept.move_to_end(_key(constraint))
        return Guide(matcher.deep_copy(), self._weights.n_vocab, constraint.param)

    def guide(self, constraint: Constraint | Frame) -> Guide:
        """The constraint, compiled. Blocks, so it is called beside the steps; raises UnsupportedValue, Unavailable."""
        if (guide := self.known(constraint)) is not None:
            return guide
        matcher = self._compile(constraint)
        with self._lock:
            self._kept[_key(constraint)] = matcher
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return Guide(matcher.deep_copy(), self._weights.n_vocab, constraint.param)

    def _compile(self, constraint: Constraint | Frame) -> LLMatcher:
        tokenizer = self._tokenizer.result()
        if not self._compilers.acquire(timeout=SECONDS):
            raise Unavailable("other constraints are being compiled: try again", param=constraint.param)
        compiled: Future[LLMatcher] = Future()

        def work() -> None:
            if sys.platform == "linux":  # where a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            try:
                compiled.set_result(_matcher(constraint, tokenizer))
            except BaseException as error:  # a panic in native code arrives as one
                compiled.set_exception(error)
            finally:
                self._compilers.release()

        threading.Thread(target=work, name="grammar", daemon=True).start()
        try:
            return compiled.result(SECONDS)
        except OxloError:
            raise
        except TimeoutError:
            why = f"it takes longer than {SECONDS:g} s to compile"
        except BaseException as error:
            why = _first_line(str(error))
        raise UnsupportedValue(
            f"this constraint cannot be enforced: {why}. Simplify it.", param=constraint.param
        )

    @contextmanager
    def beside(self, guides: Sequence[Guide]) -> Iterator[None]:
        """Compute the guides' masks on another thread while the block runs; both have ended when it is left."""
        if not guides:
            yield
            return
        ahead = self._masks.submit(_look_ahead, guides)
        try:
            yield
        finally:
            ahead.result()

    def close(self) -> bool:
        """End the threads; False when a compilation, which reads the vocabulary, is still running: leave that alone."""
        self._masks.shutdown()
        deadline = time.monotonic() + SECONDS
        waits = (max(0.0, deadline - time.monotonic()) for _ in range(COMPILERS))
        return all(self._compilers.acquire(timeout=wait) for wait in waits)


def _key(constraint: Constraint | Frame) -> tuple[str, ...]:
    """What a compiled constraint is known by."""
    return constraint.key if isinstance(constraint, Frame) else (constraint.kind, constraint.text)


def _look_ahead(guides: Sequence[Guide]) -> None:
    for guide in guides:
        guide.look_ahead()


def _tokenizer(weights: Weights) -> LLTokenizer:
    """The vocabulary as llguidance wants it: control tokens are marked, so that no text can mean them."""
    tokens = [
        weights.piece(token) or b"\xff" + (weights.token_bytes(token) or b"[%d]" % token)
        for token in range(weights.n_vocab)
    ]
    ends = [weights.eos, *sorted(weights.eog - {weights.eos})] if weights.eos >= 0 else sorted(weights.eog)
    # Its stub has forgotten this constructor.
    made: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
        tokens=tokens,
        vocab_ptr=weights.vocab,
        tokenize_fptr=weights.tokenize_address,
        eos_token=ends,
        slices=[*SLICES],
    )
    return made


def guided(schema: str) -> str:
    """A JSON Schema, as text, with llguidance's own switches: nothing is loosened, blanks are few."""
    read = with_dates(json.loads(schema))
    assert isinstance(read, dict)
    return json.dumps({**read, "x-guidance": JSON_OPTIONS})


def with_dates(schema: object) -> object:
    """A schema whose dates are patterns: llguidance's own have a 29th of February each year."""
    if isinstance(schema, list):
        return [with_dates(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, object] = {}
    for keyword, value in schema.items():
        if keyword in NAMED and isinstance(value, dict):
            made[keyword] = {name: with_dates(each) for name, each in value.items()}
        else:
            made[keyword] = value if keyword in VALUES else with_dates(value)
    beside = made.get("allOf", [])
    if schema.get("format") in ("date", "date-time") and isinstance(beside, list):
        made["allOf"] = [*beside, {"pattern": f"^({FORMATS[str(made.pop('format'))]})$"}]
    return made


def _source(constraint: Constraint) -> str:
    """A constraint in llguidance's own form, or in Lark."""
    match constraint.kind:
        case "json_schema":
            return f'{{"grammars": [{{"json_schema": {guided(constraint.text)}}}]}}'
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "grammar":
            return grammar_from("grammar", constraint.text)


def framed(frame: Frame) -> str:
    """A frame and what is inside, in llguidance's own form."""
    grammars: list[object] = [{"name": "frame", "lark_grammar": frame.lark}]
    if frame.inside is not None:
        source = _source(frame.inside)
        own = json.loads(source)["grammars"][0] if source.startswith("{") else {"lark_grammar": source}
        grammars.append({**own, "name": "inside"})
    return json.dumps({"grammars": grammars})


def _matcher(constraint: Constraint | Frame, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of its grammar, the first mask computed. Raises ValueError with the reason."""
    grammar = framed(constraint) if isinstance(constraint, Frame) else _source(constraint)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if not matcher.is_error():
        # A grammar without any sentence shows here, and a large one does its first, longest work.
        matcher.compute_bitmask()
    if matcher.is_error():
        error = matcher.get_error()
        raise ValueError("no text matches it" if "NoExtension" in error else error)
    warnings = matcher.get_grammar_warnings()
    if warnings:
        raise ValueError(warnings[0])
    return matcher


def _first_line(text: str) -> str:
    """What llguidance says, without the source that it quotes behind it."""
    words = " ".join(text.split("\n<")[0].split())
    return words[:300].rstrip(".")
