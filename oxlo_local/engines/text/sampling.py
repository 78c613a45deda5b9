"""Choosing a token: one sampler chain per sequence, in libllama's C code or in the model's own graph.

The chain's order is llama.cpp's: bias, penalties, top_k, typical_p, top_p, min_p, temperature, draw. Three ways lead
through it: plain greedy is an argmax in numpy (a tenth of the chain's time at a 150 k vocabulary); with
`backend_sampling` the chain is attached to the slot and runs inside the graph, which saves a GPU the transfer of the
logits; everything else runs the C chain over the row's logits.

Penalties as the callers mean them: `repeat_penalty` looks back over prompt and answer (llama.cpp), frequency and
presence penalties over the answer alone (OpenAI), hence two penalty samplers.
"""

import secrets

import llama_cpp.llama_cpp as C
import numpy as np

from oxlo_local.calls import Sampling, TokenLogprob, TopLogprob
from oxlo_local.engines.text.llama import F32, Llama, Row

SEED_SPACE = 2**32 - 1  # libllama reads the largest value as "draw one"


class Sampler:
    """Draws one sequence's tokens. `slot` is where it is attached for backend sampling, None while it is not."""

    def __init__(
        self, llama: Llama, sampling: Sampling, *, choice: int, prompt: list[int], logits: bool = False
    ) -> None:
        self._llama = llama
        self._chain: object | None = None  # a pointer, owned
        self._attached: int | None = None
        seed = secrets.randbelow(SEED_SPACE) if sampling.seed is None else sampling.seed + choice
        self.greedy = _plain_greedy(sampling)
        if not self.greedy:
            self._chain = _chain(llama, sampling, seed % SEED_SPACE, prompt)
        self._for_backend = (
            bool(llama.options.backend_sampling)
            and not self.greedy
            and not logits
            and sampling.mirostat == 0
            and sampling.typical_p >= 1.0
        )

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

    def sample(self, row: Row) -> int:
        """The token after `row`; the chain remembers it."""
        if self.greedy:
            return int(self._llama.logits(row).argmax())
        return int(C.llama_sampler_sample(self._chain, self._llama.context, row.index))

    def close(self) -> None:
        """Free the chain."""
        self.detach()
        if self._chain:
            C.llama_sampler_free(self._chain)
            self._chain = None


def _plain_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest raw logit is the answer: no filter can remove it, and nothing moves it."""
    moved = sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty
    return sampling.temperature <= 0 and not moved and sampling.repeat_penalty == 1.0


def _chain(llama: Llama, sampling: Sampling, seed: int, prompt: list[int]) -> object:
    chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
    vocab = llama.n_vocab

    def add(sampler: object) -> None:
        C.llama_sampler_chain_add(chain, sampler)

    if sampling.logit_bias:
        biases = (C.llama_logit_bias * len(sampling.logit_bias))()
        for i, (token, bias) in enumerate(sampling.logit_bias.items()):
            biases[i].token, biases[i].bias = token, float("-inf") if bias <= -100 else bias
        add(C.llama_sampler_init_logit_bias(vocab, len(biases), biases))
    window = sampling.repeat_last_n if sampling.repeat_last_n >= 0 else llama.context_length
    if sampling.repeat_penalty != 1.0 and window > 0:
        repeat = C.llama_sampler_init_penalties(vocab, window, sampling.repeat_penalty, 0.0, 0.0)
        for token in prompt[-window:]:
            C.llama_sampler_accept(repeat, token)
        add(repeat)
    if sampling.frequency_penalty or sampling.presence_penalty:
        add(
            C.llama_sampler_init_penalties(
                vocab, llama.context_length, 1.0, sampling.frequency_penalty, sampling.presence_penalty
            )
        )
    if sampling.temperature <= 0:
        add(C.llama_sampler_init_greedy())
    elif sampling.mirostat == 1:
        add(C.llama_sampler_init_temp(sampling.temperature))
        add(C.llama_sampler_init_mirostat(vocab, seed, sampling.mirostat_tau, sampling.mirostat_eta, 100))
    elif sampling.mirostat == 2:
        add(C.llama_sampler_init_temp(sampling.temperature))
        add(C.llama_sampler_init_mirostat_v2(seed, sampling.mirostat_tau, sampling.mirostat_eta))
    else:
        if sampling.top_k > 0:
            add(C.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            add(C.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1:
            add(C.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            add(C.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.temperature != 1:
            add(C.llama_sampler_init_temp(sampling.temperature))
        add(C.llama_sampler_init_dist(seed))
    return chain


def logprob(llama: Llama, logits: F32, token: int, alternatives: int) -> TokenLogprob:
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


def unscored(llama: Llama, token: int) -> TokenLogprob:
    """The entry of an echoed prompt's first token, which nothing predicted."""
    text, raw = _shown(llama, token)
    return TokenLogprob(text, raw, None, [])


def _shown(llama: Llama, token: int) -> tuple[str, list[int]]:
    return llama.token_text(token), list(llama.piece(token))
