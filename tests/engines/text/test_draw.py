"""Drawing in numpy: the same candidates and probabilities as libllama's own chain."""

import ctypes

import llama_cpp.llama_cpp as C
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from oxlo_local.calls import Sampling
from oxlo_local.engines.text.draw import candidates, draw, draws, largest, pick


def logits_of(seed: int, size: int, spread: float) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def by_libllama(logits: NDArray[np.float32], sampling: Sampling) -> dict[int, float]:
    """What libllama's samplers leave of the candidates, as token -> logit."""
    data = (C.llama_token_data * len(logits))()
    for token, logit in enumerate(logits.tolist()):
        data[token].id, data[token].logit = token, logit
    array = C.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    for sampler in (
        C.llama_sampler_init_top_k(sampling.top_k),
        C.llama_sampler_init_top_p(sampling.top_p, 1),
        C.llama_sampler_init_min_p(sampling.min_p, 1),
    ):
        C.llama_sampler_apply(sampler, ctypes.byref(array))
        C.llama_sampler_free(sampler)
    return {array.data[i].id: array.data[i].logit for i in range(array.size)}


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("size", [40, 3000])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(top_k=10),
        Sampling(top_p=0.9),
        Sampling(top_p=0.3),
        Sampling(min_p=0.05),
        Sampling(top_k=30, top_p=0.8, min_p=0.1),
        Sampling(top_p=0.0),
        Sampling(top_k=100_000),
    ],
)
def test_the_filters_leave_what_libllamas_leave(sampling: Sampling, size: int, spread: float) -> None:
    for seed in range(5):
        logits = logits_of(seed, size, spread)
        ids, values = candidates(logits, sampling)
        ours = dict(zip(range(size) if ids is None else ids.tolist(), values.tolist(), strict=True))
        theirs = by_libllama(logits, sampling)
        # The token at the very edge of a nucleus may fall on either side by the rounding of a sum.
        assert len(set(ours) ^ set(theirs)) <= (1 if 0 < sampling.top_p < 1 else 0)
        assert all(ours[token] == pytest.approx(theirs[token]) for token in set(ours) & set(theirs))


@given(st.integers(0, 999), st.floats(0, 1, exclude_max=True), st.sampled_from([5, 511, 513, 2000]))
def test_pick_is_where_the_running_sum_passes(seed: int, uniform: float, size: int) -> None:
    weights = np.random.default_rng(seed).random(size).astype(np.float32)
    sums = np.cumsum(weights, dtype=np.float64)
    place = pick(weights, uniform)
    target = uniform * sums[-1]
    assert sums[place] >= target * (1 - 1e-6)
    assert (sums[place - 1] if place else 0.0) <= target * (1 + 1e-6)


@given(st.integers(0, 2**32), st.integers(1, 5000), st.data(), st.booleans())
def test_largest_are_those_of_a_sort(seed: int, size: int, data: st.DataObject, ties: bool) -> None:
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    if ties:
        values = np.round(values)
    count = data.draw(st.integers(1, size))
    found = largest(values, count)
    assert len(set(found.tolist())) == count
    assert sorted(values[found]) == sorted(values)[size - count :]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = logits_of(1, 600, 1.5)
    sampling = Sampling(temperature=0.7)
    numbers = np.random.default_rng(2).random(20_000)
    drawn = np.bincount([draw(logits, sampling, u) for u in numbers.tolist()], minlength=600) / 20_000
    expected = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    assert np.abs(drawn - expected).max() < 0.012


def test_a_banned_token_is_never_drawn() -> None:
    logits = np.array([0.0, -np.inf, 1.0], dtype=np.float32)
    drawn = {draw(logits, Sampling(top_p=0.99), u) for u in np.linspace(0, 0.999, 50).tolist()}
    assert drawn == {0, 2}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(typical_p=0.9),
        Sampling(mirostat=2),
        Sampling(presence_penalty=0.1),
        Sampling(repeat_penalty=1.1),
        Sampling(logit_bias={1: 1.0}),
    ],
)
def test_the_rest_is_left_to_the_chain(sampling: Sampling) -> None:
    assert not draws(sampling)
    assert draws(Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1))
