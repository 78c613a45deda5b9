"""Whether a chunk was heard well enough, and which try is kept where none was good."""

import dataclasses

from oxlo_local.engines.speech.quality import Try, best

GOOD = Try((1, 2), "and so my fellow Americans", 0.0, avg_logprob=-0.3, no_speech_prob=0.01)
LOOP = dataclasses.replace(GOOD, text="and and " * 40)
GUESS = dataclasses.replace(GOOD, avg_logprob=-1.5)
HUSH = dataclasses.replace(GOOD, avg_logprob=-1.5, no_speech_prob=0.9)


def test_what_fails() -> None:
    assert not GOOD.fails
    assert LOOP.fails and LOOP.compression > 2.4
    assert GUESS.fails and not GUESS.silent
    assert HUSH.silent and not HUSH.fails


def test_text_that_was_likely_over_silence_is_text() -> None:
    assert not dataclasses.replace(GOOD, no_speech_prob=0.99).silent


def test_nothing_said_compresses_to_more_than_nothing() -> None:
    assert dataclasses.replace(GOOD, text="  ").compression < 1


def test_the_last_try_is_kept_if_good() -> None:
    assert best([LOOP, GUESS, GOOD]) is GOOD
    assert best([GUESS, HUSH]) is HUSH


def test_of_failures_the_likeliest_that_does_not_repeat_itself() -> None:
    worse = dataclasses.replace(GUESS, avg_logprob=-2.5)
    assert best([LOOP, worse, GUESS, worse]) is GUESS
    assert best([LOOP, LOOP]) == LOOP
