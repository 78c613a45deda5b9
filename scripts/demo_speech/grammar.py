"""The little language that oxlo-demo-speech understands: ten digits, sixty command words, and sentences over them.

No two words sound alike ("for" and "four" would). One sentence in eight is held out of training for good, by a
digest of its text, so that training and examination can never meet however much of either is made.
"""

from __future__ import annotations

import random
import zlib

DIGITS = "zero one two three four five six seven eight nine".split()
SWITCHES = "on off".split()
DIRECTIONS = "left right up down forward back".split()
COLOURS = "red green blue white yellow black".split()
ROOMS = "kitchen bedroom garage garden office".split()
THINGS = "door window light lamp fan heater camera".split()
SOUNDS = "music radio alarm timer message song".split()
UNITS = "seconds minutes hours percent degrees".split()
VERBS = "open close lock start stop play pause turn move set send call find delete save repeat".split()
JOINTS = "please the and in at with number yes".split()
WORDS = (*DIGITS, *SWITCHES, *DIRECTIONS, *COLOURS, *ROOMS, *THINGS, *SOUNDS, *UNITS, *VERBS, *JOINTS)

PATTERNS = (
    "turn {switch} the {thing} in the {room}",
    "turn the {colour} {thing} {switch}",
    "turn {direction}",
    "{lock} the {room} {thing}",
    "{lock} {thing} {digit}",
    "{lock} the {colour} {thing} please",
    "{run} the {sound}",
    "{run} {sound} number {digit} {digit}",
    "{run} the {sound} in the {room}",
    "set the {sound} at {digit} {digit} {unit}",
    "set {thing} {digit} at {digit} {digit} percent",
    "set the {room} heater at {digit} {digit} degrees",
    "start the timer with {digit} {digit} {unit}",
    "move {direction} {digit}",
    "move {direction} {digit} {digit} and turn {direction}",
    "move the {colour} {thing} {direction}",
    "call {digit} {digit} {digit} {digit} {digit} {digit}",
    "call number {digit} {digit} {digit} {digit}",
    "call the {room} please",
    "send message {digit} {digit}",
    "send the message at {digit} {digit} {digit} {digit}",
    "find the {colour} {thing}",
    "find {thing} {digit} in the {room}",
    "delete message number {digit}",
    "save number {digit} {digit} {digit} {digit} {digit}",
    "repeat the {sound} {digit} {unit}",
    "pause {digit} {digit} seconds and repeat",
    "yes {lock} the {thing}",
    "yes {run} the {sound} please",
    "please {run} the {sound} with the {thing} {switch}",
    "please {lock} the {thing} and the {thing}",
    "{digit} {digit} {digit} {digit}",
)
SLOTS = {
    "digit": DIGITS,
    "switch": SWITCHES,
    "direction": DIRECTIONS,
    "colour": COLOURS,
    "room": ROOMS,
    "thing": THINGS,
    "sound": SOUNDS,
    "unit": UNITS,
    "lock": ["open", "close", "lock"],
    "run": ["start", "stop", "play", "pause", "repeat", "save", "delete", "find"],
}
JUMBLED_SHARE = 0.3  # of the training sentences: words in no order, which teach to listen instead of to guess


def pattern_sentence(rng: random.Random) -> str:
    """One pattern with its slots filled at random."""
    words = rng.choice(PATTERNS).split()
    return " ".join(rng.choice(SLOTS[word[1:-1]]) if word.startswith("{") else word for word in words)


def jumbled_sentence(rng: random.Random) -> str:
    """One to seven words in no order."""
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 7)))


def is_held_out(sentence: str) -> bool:
    """Whether the sentence belongs to the examination: never trained on, alone or within a longer window.

    Single words cannot be held out, or they would not be learnt.
    """
    return " " in sentence and zlib.crc32(sentence.encode()) % 8 == 0


def training_sentence(rng: random.Random) -> str:
    """A sentence that is not held out."""
    while True:
        make = jumbled_sentence if rng.random() < JUMBLED_SHARE else pattern_sentence
        sentence = make(rng)
        if not is_held_out(sentence):
            return sentence


def held_out_sentence(rng: random.Random) -> str:
    """A sentence of the patterns that is held out."""
    while True:
        sentence = pattern_sentence(rng)
        if is_held_out(sentence):
            return sentence
