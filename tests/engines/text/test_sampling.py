"""Which samplers a request gets, and log-probabilities as OpenAI reports them.

How tokens are drawn is tested through the engine.
"""

import ctypes
import math

import llama_cpp.llama_cpp as C
import numpy as np
import pytest

from oxlo_local.calls import Sampling
from oxlo_local.engines.text.llama import Llama
from oxlo_local.engines.text.sampling import chain, logprob, plain_greedy
from oxlo_local.workers.main import resident_bytes
from tests.engines.text.conftest import MakeEngine


class Words:
    """As much of Llama as logprob needs: token 0 is "a", 1 is "b", ..."""

    def token_text(self, token: int) -> str:
        return chr(97 + token)

    def piece(self, token: int) -> bytes:
        return self.token_text(token).encode()


def test_logprobs_are_a_log_softmax_of_the_raw_logits() -> None:
    logits = np.array([1.0, 3.0, 2.0, -50.0], dtype=np.float32)
    total = sum(math.exp(x) for x in logits.tolist())
    scored = logprob(Words(), logits, 2, 2)
    assert scored.logprob == pytest.approx(2.0 - math.log(total), abs=1e-6)
    assert [top.token for top in scored.top] == ["b", "c"]
    assert scored.bytes == [ord("c")]


def test_huge_logits_do_not_overflow() -> None:
    scored = logprob(Words(), np.array([1e4, -1e4], dtype=np.float32), 0, 5)
    assert scored.logprob == pytest.approx(0.0)
    assert len(scored.top) == 2, "no more alternatives than there are tokens"


@pytest.mark.parametrize(
    ("sampling", "greedy"),
    [
        (Sampling(temperature=0), True),
        (Sampling(temperature=0, top_p=0.1, top_k=3, seed=4), True),
        (Sampling(temperature=0.01), False),
        (Sampling(temperature=0, logit_bias={1: 2.0}), False),
        (Sampling(temperature=0, repeat_penalty=1.1), False),
        (Sampling(temperature=0, presence_penalty=0.5), False),
    ],
)
def test_plain_greedy_is_only_what_an_argmax_answers(sampling: Sampling, greedy: bool) -> None:
    assert plain_greedy(sampling) is greedy


MOVED = {"logit_bias": {20: 1.0}, "repeat_penalty": 1.1, "presence_penalty": 0.1}
FILTERED = {"top_k": 9, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.1, "temperature": 0.7}


@pytest.mark.parametrize(
    ("asked", "samplers"),
    [
        (MOVED | FILTERED, "logit-bias penalties penalties top-k min-p typical top-p min-p temp dist"),
        ({"frequency_penalty": 0.1}, "penalties dist"),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, "dist"),
        (FILTERED | {"mirostat": 1}, "temp min-p mirostat"),
        (MOVED | {"mirostat": 2}, "logit-bias penalties penalties temp mirostat-v2"),
        (MOVED | FILTERED | {"temperature": 0}, "logit-bias penalties penalties greedy"),
    ],
)
def test_each_parameter_has_its_sampler_in_llama_cpps_order(
    make_engine: MakeEngine, asked: dict[str, float], samplers: str
) -> None:
    made = chain(make_engine()._llama, Sampling(**asked), 1, [20, 30])  # type: ignore[arg-type]
    links = [C.llama_sampler_chain_get(made, place) for place in range(C.llama_sampler_chain_n(made))]
    names = [C.llama_sampler_name(link).decode().lstrip("+?") for link in links]
    C.llama_sampler_free(made)
    assert " ".join(names) == samplers


def left(llama: Llama, asked: dict[str, float], banned: range) -> set[int]:
    """The tokens that a request's chain leaves to be drawn from."""
    logits = np.random.default_rng(3).standard_normal(llama.n_vocab) * 2
    logits[7] = -20
    data = (C.llama_token_data * llama.n_vocab)()
    for token, logit in enumerate(logits.tolist()):
        data[token].id, data[token].logit = token, logit
    array = C.llama_token_data_array(data=data, size=len(data), selected=-1, sorted=False)
    bias = dict.fromkeys(banned, -100.0)
    made = chain(llama, Sampling(logit_bias=bias, **asked), 1, [20])  # type: ignore[arg-type]
    C.llama_sampler_apply(made, ctypes.byref(array))
    C.llama_sampler_free(made)
    return {array.data[place].id for place in range(array.size)}


def test_typical_is_the_same_without_a_token_that_had_no_chance(make_engine: MakeEngine) -> None:
    llama = make_engine()._llama
    assert left(llama, {"typical_p": 0.5}, range(7, 8)) == left(llama, {"typical_p": 0.5}, range(0))


def test_mirostat_draws_from_all_of_the_few_that_may_come(make_engine: MakeEngine) -> None:
    asked = {"mirostat": 1, "mirostat_tau": 9.0}
    assert left(make_engine()._llama, asked, range(20, 512)) == set(range(20))


def test_no_client_decides_how_much_memory_a_penalty_takes(make_engine: MakeEngine) -> None:
    llama = make_engine()._llama
    before = resident_bytes()
    made = chain(llama, Sampling(repeat_penalty=1.1, repeat_last_n=1 << 26), 1, [20])
    grown = resident_bytes() - before
    C.llama_sampler_free(made)
    assert grown < 50_000_000
