"""Questions from intents: alternatives, slots, ways of asking, and the untidiness of real typing.

An intent (talk/*.toml) is one thing to be known. Its `ask` are whole questions, its `do` are verb phrases that
are put into every way of asking for a command (FRAMES), its `key` are bare search words, and its `then` are
what is said when the talk was about the same thing already. `(a|b|)` is one of the alternatives, `{slot}` a
value drawn once a turn, the same in question and answer. A small model cannot know that two sentences mean the
same unless it has met most of their words; so breadth of wording, not length of answers, is what this file buys.
"""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent
SLOT = re.compile(r"\{([A-Za-z]\w*)\}")


@dataclass(frozen=True)
class Intent:
    """One thing that the model can be asked; the fields are those of the files in talk/."""

    name: str
    room: str
    answer: tuple[str, ...] = ()
    weight: float = 1.0
    plain: bool = False
    toolless: bool = False
    tool: str = ""
    call: str = ""
    response: tuple[str, ...] = ()
    final: str = ""
    do: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    wish: tuple[str, ...] = ()
    system: tuple[str, ...] = field(default=())


LINES = ("answer", "response", "do", "ask", "key", "then", "wish", "system")


@lru_cache(maxsize=1)
def intents() -> tuple[Intent, ...]:
    """Every intent of talk/, in the order of the files."""
    found = []
    for path in sorted((HERE / "talk").glob("*.toml")):
        for raw in tomllib.loads(path.read_text())["intent"]:
            for name in LINES:
                text = raw.get(name, "").strip("\n")
                raw[name] = tuple(line.replace("\\n", "\n") for line in text.split("\n") if line)
            found.append(Intent(room=path.stem, **raw))
    return tuple(found)


def expand(template: str, rng: random.Random) -> str:
    """Chooses one of each `(a|b|)` and tidies the spaces that empty choices leave."""
    return re.sub(r" +([?,.:]|$)", r"\1", re.sub(r" {2,}", " ", _chosen(template, rng))).strip()


def _chosen(template: str, rng: random.Random) -> str:
    out: list[str] = []
    at = 0
    while at < len(template):
        if template[at] == "(" and (end := _closing(template, at)) and "|" in template[at:end]:
            out.append(_chosen(rng.choice(_split(template[at + 1 : end])), rng))
            at = end + 1
        else:
            out.append(template[at])
            at += 1
    return "".join(out)


def _closing(template: str, start: int) -> int:
    depth = 0
    for at in range(start, len(template)):
        depth += {"(": 1, ")": -1}.get(template[at], 0)
        if not depth:
            return at
    return 0


def _split(choices: str) -> list[str]:
    parts, depth, last = [], 0, 0
    for at, letter in enumerate(choices):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "|" and not depth:
            parts.append(choices[last:at])
            last = at + 1
    return [*parts, choices[last:]]


def fill(text: str, slots: dict[str, str]) -> str:
    """Puts the values of the slots in; braces that name no slot (JSON) stay."""
    return SLOT.sub(lambda found: slots.get(found[1], found[0]), text)


FRAMES = tuple(
    line
    for line in """
how (do|can|could|should|would|might) (i|we|one|you|somebody) {do}
how (do|can) i {do}
how (do|can) i {do}
how to {do}
how does (one|a user|someone) {do}
(what|which) (is the command|command is there|command do i need|command should i use|command do i run|command) to {do}
(what|which command) (do|should|must) (i|we) (type|run|enter|use|call|execute) to {do}
i (want|need|would like|have|wish|am trying|try|intend|plan) to {do}
i (want|need|would like) to {do}(, how|, what now|, what do i do|, any idea|, help)
(i'd like|we'd like|i want|we need) to {do}
(can|could|may) (i|we|you|one|it|oxlo) {do}
is (there a way|it possible|there a command|there any way|there a simple way|there an option) to {do}
(what is|what's) the (best|easiest|right|quickest|correct|proper|usual) way to {do}
(tell|show|explain to|teach) (me|us) how to {do}
(explain|describe) how to {do}
(help me|let me|please|help us|allow me to) {do}
(do you know|any idea|can you tell me|could you tell me|can you explain) how to {do}
(i don't know|i wonder|i forgot|remind me|not sure) how to {do}
(any|a) (way|command|tip|hint) to {do}
(steps|instructions|command|commands|guide|the command) to {do}
{do}
{do}
{doing}
{doing}: how (does it work|is it done|to|do i do that)
how does {doing} work
how about {doing}
what about {doing}
(command|help|instructions) for {doing}
is {doing} (possible|supported|hard|allowed)
my (task|goal|plan) (is|today is) to {do}
(where|when) (do|can) i {do}
what if i (want|need|have) to {do}
it is time to {do}
""".strip().split("\n")
)

FOLLOW_FRAMES = tuple(
    line
    for line in """
(and|ok, and|good, and|thanks, and|then) how do i {do}
(and|ok, and|so) to {do}
(and|now|next) i want to {do}
(and|ok, and) {doing}
what about {doing}
(and|now) {do}
(then|and then|afterwards|later) i (want|need) to {do}
can i also {do}
""".strip().split("\n")
)

DOUBLING = {
    "get",
    "set",
    "run",
    "stop",
    "begin",
    "put",
    "shut",
    "drop",
    "grab",
    "chat",
    "let",
    "cut",
    "plan",
    "dump",
    "sum",
    "quit",
}


def gerund(phrase: str) -> str:
    """The phrase with its first word as an -ing form: "remove it" -> "removing it"."""
    verb, _, rest = phrase.partition(" ")
    if verb in DOUBLING and verb not in {"dump"}:
        verb += verb[-1]
    elif verb.endswith("ie"):
        verb = verb[:-2] + "y"
    elif verb.endswith("e") and not verb.endswith(("ee", "oe")) and verb != "be":
        verb = verb[:-1]
    return f"{verb}ing {rest}".strip()


def question(intent: Intent, rng: random.Random, *, follow: bool = False) -> str:
    """One wording of the intent, its slots still open. `follow`: the talk is about this already."""
    if follow and intent.then and rng.random() < 0.7:
        return expand(rng.choice(intent.then), rng)
    ways: list[str] = []
    if intent.do:
        ways += ["do"] * min(6, 2 + 2 * len(intent.do))
    if intent.ask:
        ways += ["ask"] * min(6, 1 + len(intent.ask))
    if intent.key:
        ways += ["key"]
    way = rng.choice(ways)
    if way == "do":
        phrase = expand(rng.choice(intent.do), rng)
        frame = expand(rng.choice(FOLLOW_FRAMES if follow else FRAMES), rng)
        return frame.replace("{doing}", gerund(phrase)).replace("{do}", phrase)
    return expand(rng.choice(intent.ask if way == "ask" else intent.key), rng)


# ---------------------------------------------------------------- untidiness


@lru_cache(maxsize=1)
def synonyms() -> dict[str, list[str]]:
    """Each single word of synonyms.txt with what may stand in its place."""
    others: dict[str, list[str]] = {}
    for line in (HERE / "synonyms.txt").read_text().splitlines():
        group = line.split(", ")
        for word in group:
            others.setdefault(word, []).extend(other for other in group if other != word)
    return others


SHORT = {
    "what is": "what's", "i am": "i'm", "do not": "don't", "how is": "how's", "cannot": "can't",
    "i would": "i'd", "it is": "it's", "does not": "doesn't", "you are": "you're",
}  # fmt: skip
DROPPABLE = {"the", "a", "an", "do", "is", "to", "of", "i", "does", "my", "it", "are", "for"}
BEFORE = (
    "please", "hi,", "hello,", "hey,", "ok,", "so,", "well,", "excuse me,", "quick question:",
    "good morning,", "um,", "sorry,", "one more thing:", "another question:", "now,", "right,", "i wonder:",
    "listen,", "dear oxlo,", "oxlo-demo,", "hi there,", "i have a question:", "just curious:", "question:",
    "tell me,", "say,", "and", "help:", "alright,",
)  # fmt: skip
AFTER = (
    "please", "thanks", "thank you", "exactly", "then", "in oxlo", "with oxlo", "here", "pls", "again",
    "by the way", "if i may ask", "quickly", "for me", "i wonder", "any idea", "can you tell me",
    "do you know", "in this case", "actually", "really",
)  # fmt: skip
SETTING = (
    "i am new to this.", "we are a small team.", "i use linux.", "i have little time.",
    "i read the readme already.", "my boss asked me.", "i work on a workstation.",
    "it is for a school project.", "we have one server.", "i am not a programmer.", "great tool.",
    "i am at home.", "i could not find it.", "there is so much to learn.", "i tried everything.",
    "this is urgent.", "everything works so far.", "i just began.", "i am a developer.", "it is late.",
)  # fmt: skip


def untidy(text: str, rng: random.Random, *, protect: set[str], plain: bool) -> str:
    """The question as somebody might type it; words in `protect` (slot values) are left alone."""
    for long, short in SHORT.items():
        if rng.random() < 0.3:
            text = re.sub(rf"\b{long}\b", short, text)
    words = text.split(" ")
    safe = [bool(re.search(r"[\d/{}<>_\-.:A-Z\"]", word)) or word.strip(",?!") in protect for word in words]
    if not plain:
        words = _reworded(words, safe, rng)
    if rng.random() < 0.12:
        words = _mistyped(words, safe, rng)
    text = " ".join(word for word in words if word)
    if not plain:
        if rng.random() < 0.18:
            text = f"{rng.choice(BEFORE)} {text}"
        if rng.random() < 0.10:
            text = f"{text}{rng.choice([',', ''])} {rng.choice(AFTER)}"
        if rng.random() < 0.06:
            text = f"{rng.choice(SETTING)} {text}"
    return _cased(text, rng)


def _reworded(words: list[str], safe: list[bool], rng: random.Random) -> list[str]:
    out = list(words)
    for at, word in enumerate(words):
        bare = word.rstrip(",?!")
        if not safe[at] and bare in synonyms() and rng.random() < 0.15:
            out[at] = rng.choice(synonyms()[bare]) + word[len(bare) :]
        elif word in DROPPABLE and len(words) > 4 and rng.random() < 0.03:
            out[at] = ""
    return out


def _mistyped(words: list[str], safe: list[bool], rng: random.Random) -> list[str]:
    open_words = [at for at, word in enumerate(words) if len(word) > 3 and not safe[at]]
    for at in rng.sample(open_words, min(len(open_words), rng.choice((1, 1, 2)))):
        word = words[at]
        spot = rng.randrange(len(word) - 1)
        kind = rng.randrange(4)
        if kind == 0:
            words[at] = word[:spot] + word[spot + 1] + word[spot] + word[spot + 2 :]
        elif kind == 1:
            words[at] = word[:spot] + word[spot + 1 :]
        elif kind == 2:
            words[at] = word[:spot] + word[spot] + word[spot:]
        else:
            words[at] = word[:spot] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[spot + 1 :]
    return words


ASKING = re.compile(
    r"(and |ok, |so |well, |hi, |hello, )*"
    r"(how|what|which|who|where|when|why|is|are|do|does|can|could|will|may|must)\b"
)


def _cased(text: str, rng: random.Random) -> str:
    """Capitals and a full stop, or none, as people do."""
    asks = bool(ASKING.match(text))
    style = rng.random()
    if style < 0.45:
        text = re.sub(r"\bi\b(?=['\s])", "I", text)
        text = re.sub(r"(^|[.?!] )([a-z])", lambda found: found[1] + found[2].upper(), text)
        if text[-1].isalnum():
            text += ("?" if asks else rng.choice((".", ".", "!", "?", ""))) if rng.random() < 0.85 else ""
    elif style < 0.60 and text[-1].isalnum():
        text += "?" if asks else rng.choice((".", "!", "...", "?"))
    elif style < 0.63 and not re.search(r"[{\"/]", text):
        text = text.upper() + rng.choice(("", "!", "?", "??"))
    return text
