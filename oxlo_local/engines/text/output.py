"""Bytes of tokens in, text that may be shown out: whole characters only, and never part of a stop string.

Two things hold text back. A character's UTF-8 bytes may lie in several tokens: an incomplete tail waits for the rest.
And the end of the text may be the beginning of a stop string: it waits until the next characters decide.

**Stop strings.** The match that completes first ends the text; of several that complete at the same character, the
longest. With stops "bc" and "abcd", "abcd" ends after "a". (Were the match that begins first to win, "a" could never
be shown before it is known that "abcd" does not follow.) An Aho-Corasick automaton finds it: its states are the
prefixes of the stop strings, and its current state is the longest one that the text ends with. So the depth of the
state is exactly what must be held back, and no character is looked at twice, however tokens cut the text.

**Tokens.** Whoever reports something a token (its log-probability, say) wants it beside the text that carries the
token's last character. Each `feed` is one token; `release` says how many of them, oldest first, are wholly shown. A
token that a stop string has cut, in whole or in part, is never released.
"""

from codecs import utf_8_decode
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

from oxlo_local import errors

STOP_CHARACTERS = 4096  # all stop strings of a call together: a state a character


class StopAutomaton:
    """Aho-Corasick over the stop strings. State 0 = the text ends with the beginning of none."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.depth = [0]  # of each state: characters that may become a stop string
        self.hit = [0]  # of each state: length of the longest stop string that ends here, 0 = none
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]  # of each state: the longest shorter one that the text ends with too
        for string in stop:
            self._add(string)
        self._link()
        self.first = frozenset(self._next[0])

    def _add(self, string: str) -> None:
        state = 0
        for character in string:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self.hit.append(0)
                self.depth.append(self.depth[state] + 1)
            state = self._next[state][character]
        self.hit[state] = len(string)

    def _link(self) -> None:
        """Set the failure links, shallow states first: a link leads to a shallower state, which is linked already."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                self._fail[child] = self.step(self._fail[state], character)
                self.hit[child] = self.hit[child] or self.hit[self._fail[child]]
                queue.append(child)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while state and character not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(character, 0)


@lru_cache(8)
def automaton(stop: tuple[str, ...]) -> StopAutomaton:
    """The automaton of these stop strings: the choices of a call, of which there may be thousands, share one."""
    return StopAutomaton(stop)


class TextOutput:
    """The text of one choice, as its tokens come.

    Raises BadRequest (param "stop") for an empty stop string, or for more than STOP_CHARACTERS of them together.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise errors.BadRequest("a stop string is empty: leave it out", param="stop")
        if (size := sum(map(len, stop))) > STOP_CHARACTERS:
            message = (
                f"the stop strings have {size} characters together: at most {STOP_CHARACTERS} are allowed"
            )
            raise errors.BadRequest(message, param="stop")
        self.stopped = False
        """A stop string was met: the text is complete, and whatever is fed now is ignored."""
        self.met: str | None = None
        """The stop string that was."""
        self._stop = automaton(tuple(stop)) if stop else None
        self._state = 0
        self._tail = b""  # an incomplete character
        self._held = ""  # what may become a stop string
        self._decoded = self._shown = 0  # characters, counted from anywhere: only their difference matters
        self._ends: deque[int] = deque()  # of each token not yet shown: `_shown` at which it will be
        self._released = 0

    def feed(self, piece: bytes) -> str:
        """Take one token's bytes; the text that may be shown now (often the piece itself, sometimes "")."""
        if self._stop is None and not self._tail and piece.isascii():
            self._released += 1
            return piece.decode("ascii")
        if self.stopped:
            return ""
        data = self._tail + piece
        text, used = utf_8_decode(data, "replace", False)
        self._tail = data[used:]
        self._decoded += len(text)
        self._ends.append(self._decoded + bool(self._tail))
        return self._show(text)

    def finish(self) -> str:
        """The rest, when no token follows: an incomplete character shows as U+FFFD, an unmet stop string as it is."""
        text, _ = utf_8_decode(self._tail, "replace", True)
        self._tail = b""
        self._decoded += len(text)
        shown = self._show(text)
        if self.stopped:
            return shown
        shown, self._held, self._state = shown + self._held, "", 0
        self._count(self._decoded - self._shown)
        return shown

    def release(self) -> int:
        """How many tokens have been shown wholly since the last call. Tokens without any text count as they come."""
        released, self._released = self._released, 0
        return released

    def _show(self, text: str) -> str:
        """Append whole characters; returns what may be shown."""
        stop, state = self._stop, self._state
        if self.stopped:
            return ""
        if stop is None or (state == 0 and stop.first.isdisjoint(text)):
            self._count(len(text))
            return text
        buffer = self._held + text
        keep = 0
        for place, character in enumerate(text, start=len(self._held) + 1):
            state = stop.step(state, character)
            if stop.hit[state]:
                self.stopped = True
                keep = len(buffer) - place + stop.hit[state]
                self.met = buffer[place - stop.hit[state] : place]
                break
        keep = keep or stop.depth[state]
        shown = buffer[: len(buffer) - keep]
        self._held, self._state = ("", 0) if self.stopped else (buffer[len(shown) :], state)
        self._count(len(shown))
        return shown

    def _count(self, characters: int) -> None:
        self._shown += characters
        while self._ends and self._ends[0] <= self._shown:
            self._ends.popleft()
            self._released += 1
