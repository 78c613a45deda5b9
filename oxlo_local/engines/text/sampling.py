"""Choosing a token: one sampler chain per sequence, in libllama's C code or in the model's own graph.

The chain's order is llama.cpp's: bias, penalties, top_k, typical_p, top_p, min_p, temperature, draw. Four ways lead
through it: plain greedy is an argmax in numpy; temperature with top_k, top_p and min_p is drawn in numpy (draw.py);
with `backend_sampling` the chain is attached to the slot and runs inside the graph, which saves a GPU the transfer of
the logits; everything else runs the C chain over the row's logits.

Penalties as the callers mean them: `repeat_penalty` looks back over prompt and answer (llama.cpp), frequency and
presence penalties over the answer alone (OpenAI), hence two penalty samplers.
"""

import secrets
from collections.abc import Iterator
from typing import Protocol

import llama_cpp.llama_cpp as C
import numpy as np
from msgspec.structs import replace

from oxlo_local.calls import Sampling, TokenLogprob, TopLogprob
from oxlo_local.engines.text.draw import draw, draws
from oxlo_local.engines.text.grammar import Guide
from oxlo_local.engines.text.llama import F32, Llama, Row
from oxlo_local.errors import BadRequest

SEED_SPACE = 2**32 - 1  # libllama reads the largest value as "draw one"
COLDEST = 1e-30  # temperature: a logit divided by less is no float any more
HOPELESS = 1e-30  # of the likeliest token's probability
MIROSTAT_CANDIDATES = 100  # tokens that version 1 fits its curve to; llama.cpp's own number


class Vocabulary(Protocol):
    """What scoring reads of a model."""

    def token_text(self, token: int) -> str: ...

    def piece(self, token: int) -> bytes: ...


class Sampler:
    """Draws one sequence's tokens, and scores them where `alternatives` is a number; a `guide` rules tokens out."""

    def __init__(
        self,
        llama: Llama,
        sampling: Sampling,
        *,
        choice: int,
        prompt: list[int],
        alternatives: int | None = None,
        guide: Guide | None = None,
    ) -> None:
        self._llama = llama
        self._alternatives = alternatives
        self._guide = guide
        self._chain: object | None = None  # a pointer, owned
        self._attached: int | None = None
        if sampling.temperature < COLDEST:
            sampling = replace(sampling, temperature=0.0)
        seed = secrets.randbelow(SEED_SPACE) if sampling.seed is None else sampling.seed + choice
        self._sampling = sampling
        self._greedy = plain_greedy(sampling)
        self._for_backend = (
            bool(llama.options.backend_sampling)
            and not self._greedy
            and alternatives is None
            and guide is None
            and sampling.mirostat == 0
            and sampling.typical_p >= 1.0
        )
        self._random: np.random.Generator | None = None
        if not self._greedy:
            if draws(sampling) and not self._for_backend:
                self._random = np.random.default_rng(seed % SEED_SPACE)
            else:
                self._chain = chain(llama, sampling, seed % SEED_SPACE, prompt)

    @property
    def in_graph(self) -> bool:
        """Whether the chain runs inside the graph."""
        return self._attached is not None

    def attach(self, slot: int) -> None:
        """Put the chain into the graph of `slot` where this request's samplers have a backend form."""
        if self._for_backend and self._attached is None:
            if C.llama_set_sampler(self._llama.context, slot, self._chain):
                self._attached = slot
            else:
                self._for_backend = False

    def detach(self) -> None:
        """Take the chain out of the graph; it goes on in C, since libllama attaches a chain only once."""
        if self._attached is not None:
            C.llama_set_sampler(self._llama.context, self._attached, None)
            self._attached, self._for_backend = None, False

    def sample(self, row: Row, due: int | None = None) -> tuple[int, TokenLogprob | None]:
        """The token after `row`, and its score by the model's own distribution; the chain remembers the token.

        A token that is `due` is the one, unless the guide forbids it here.

        Raises BadRequest where the request's biases ban every token that its constraint allows.
        """
        if self._guide is None and self._alternatives is None:
            return self._next(row, due), None
        logits = self._llama.logits(row)
        own = logits
        if self._guide is not None:
            own = logits if self._alternatives is None else logits.copy()
            self._guide.restrict(logits)
            if due is not None and not self._guide.allows(due):
                due = None
        token = self._next(row, due)
        if self._guide is not None and not self._guide.allows(token):
            raise BadRequest("'logit_bias' bans every token that the constraint allows.", param="logit_bias")
        if self._alternatives is None:
            return token, None
        return token, logprob(self._llama, own, token, self._alternatives)

    def _next(self, row: Row, due: int | None) -> int:
        if due is None:
            return self._draw(row)
        if self._chain is not None:
            C.llama_sampler_accept(self._chain, due)
        return due

    def _draw(self, row: Row) -> int:
        if self._greedy:
            return int(self._llama.logits(row).argmax())
        if self._random is not None:
            return draw(self._llama.logits(row), self._sampling, self._random.random())
        return int(C.llama_sampler_sample(self._chain, self._llama.context, row.index))

    def close(self) -> None:
        """Free the chain."""
        self.detach()
        if self._chain:
            C.llama_sampler_free(self._chain)
            self._chain = None


def plain_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest raw logit is the answer: no filter can remove it, and nothing moves it."""
    moved = sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty
    return sampling.temperature <= 0 and not moved and sampling.repeat_penalty == 1.0


def chain(llama: Llama, sampling: Sampling, seed: int, prompt: list[int]) -> object:
    """libllama's samplers for a request, as one; whoever asks frees it."""
    made = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
    for sampler in (
        *_biases(llama, sampling),
        *_penalties(llama, sampling, prompt),
        *(_mirostat(llama, sampling, seed) if sampling.mirostat else _draw(sampling, seed)),
    ):
        C.llama_sampler_chain_add(made, sampler)
    return made


def _biases(llama: Llama, sampling: Sampling) -> Iterator[object]:
    if sampling.logit_bias:
        biases = (C.llama_logit_bias * len(sampling.logit_bias))()
        for i, (token, bias) in enumerate(sampling.logit_bias.items()):
            biases[i].token, biases[i].bias = token, float("-inf") if bias <= -100 else bias
        yield C.llama_sampler_init_logit_bias(llama.n_vocab, len(biases), biases)


def _penalties(llama: Llama, sampling: Sampling, prompt: list[int]) -> Iterator[object]:
    window = llama.context_length  # libllama makes room for all of it at once, so no client decides
    if sampling.repeat_last_n >= 0:
        window = min(window, sampling.repeat_last_n)
    if sampling.repeat_penalty != 1.0 and window > 0:
        repeat = C.llama_sampler_init_penalties(llama.n_vocab, window, sampling.repeat_penalty, 0.0, 0.0)
        for token in prompt[-window:]:
            if token >= 0:  # else it is an image's, which no token repeats
                C.llama_sampler_accept(repeat, token)
        yield repeat
    if sampling.frequency_penalty or sampling.presence_penalty:
        frequency, presence = sampling.frequency_penalty, sampling.presence_penalty
        yield C.llama_sampler_init_penalties(llama.n_vocab, llama.context_length, 1.0, frequency, presence)


def _mirostat(llama: Llama, sampling: Sampling, seed: int) -> Iterator[object]:
    tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
    if sampling.temperature <= 0:
        yield C.llama_sampler_init_greedy()
        return
    yield C.llama_sampler_init_temp(sampling.temperature)
    if sampling.mirostat == 1:
        yield _hopeful()
        yield C.llama_sampler_init_mirostat(llama.n_vocab, seed, tau, eta, MIROSTAT_CANDIDATES)
    else:
        yield C.llama_sampler_init_mirostat_v2(seed, tau, eta)


def _draw(sampling: Sampling, seed: int) -> Iterator[object]:
    if sampling.temperature <= 0:
        yield C.llama_sampler_init_greedy()
        return
    if sampling.top_k > 0:
        yield C.llama_sampler_init_top_k(sampling.top_k)
    if sampling.typical_p < 1:
        yield _hopeful()
        yield C.llama_sampler_init_typical(sampling.typical_p, 1)
    if sampling.top_p < 1:
        yield C.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield C.llama_sampler_init_min_p(sampling.min_p, 1)
    if sampling.temperature != 1:
        yield C.llama_sampler_init_temp(sampling.temperature)
    yield C.llama_sampler_init_dist(seed)


def _hopeful() -> object:
    """Drops the tokens that a bias or a constraint rules out.

    libllama takes the logarithm of their 0, and what typical_p and mirostat 1 sum up becomes NaN.
    """
    return C.llama_sampler_init_min_p(HOPELESS, 1)


def logprob(llama: Vocabulary, logits: F32, token: int, alternatives: int) -> TokenLogprob:
    """ln(probability) of `token` and of the likeliest `alternatives`, from raw logits of shape (n_vocab,).

    The distribution is the model's own, before temperature and filters, as OpenAI reports it.
    """
    shifted = logits - logits.max()
    log_sum = float(np.log(np.exp(shifted, dtype=np.float64).sum()))
    top: list[TopLogprob] = []
    if alternatives:
        best = np.argpartition(-shifted, min(alternatives, len(shifted) - 1))[:alternatives]
        for other in best[np.argsort(-shifted[best], kind="stable")].tolist():
            text, raw = _shown(llama, other)
            top.append(TopLogprob(text, raw, float(shifted[other]) - log_sum))
    text, raw = _shown(llama, token)
    return TokenLogprob(text, raw, float(shifted[token]) - log_sum, top)


def unscored(llama: Vocabulary, token: int) -> TokenLogprob:
    """The entry of an echoed prompt's first token, which nothing predicted."""
    text, raw = _shown(llama, token)
    return TokenLogprob(text, raw, None, [])


def _shown(llama: Vocabulary, token: int) -> tuple[str, list[int]]:
    return llama.token_text(token), list(llama.piece(token))
