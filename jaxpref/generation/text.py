"""New token ids -> text, and what ended it."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_CONTEXT = 8
"""Prompt tokens that are decoded with the new ones: enough to tell whether a token begins a text or
continues one."""


@dataclass(frozen=True)
class Ending:
    """What ends a completion: stop tokens, and stop strings wherever they appear in its text."""

    tokenizer: Any
    tokens: frozenset[int]
    strings: tuple[str, ...]

    def within(self, prompt: np.ndarray) -> Callable[[np.ndarray], int | None]:
        """new tokens -> after how many of them their text first holds a stop string, or None."""

        def end(new: np.ndarray) -> int | None:
            def holds(count: int) -> bool:
                return self._first(self._text(prompt, new[:count])) is not None

            if not self.strings or not holds(len(new)):
                return None
            return 1 + bisect_left(range(1, len(new) + 1), True, key=holds)

        return end

    def cut(self, prompt: np.ndarray, new: np.ndarray) -> tuple[str, str]:
        """The text of new tokens up to what ended it, and the name of that.

        The names are `stop_string`, `stop_token` and `length`.
        """
        text = self._text(prompt, new)
        at = self._first(text)
        if at is not None:
            return text[:at], "stop_string"
        return text, "stop_token" if new[-1] in self.tokens else "length"

    def _first(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((at for stop in self.strings if (at := text.find(stop)) >= 0), default=None)

    def _text(self, prompt: np.ndarray, new: np.ndarray) -> str:
        """What new tokens add to the prompt's text, without a stop token.

        Decoded alone they may give another text: tokenizers of SentencePiece's kind drop the space
        in front of the first word.
        """
        context = prompt[-_CONTEXT:]
        if new[-1] in self.tokens:
            new = new[:-1]
        return self._decode(np.concatenate([context, new]))[len(self._decode(context)) :]

    def _decode(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
