"""Prompts as one tree of tokens: shared parts are read once, and branches do not see each other.

Every question with an answer is a path from the root. Paths share their common beginning (the template, the
instruction, the question before its answers), a token sees its ancestors only, and its position is its depth.
A causal model gives each path exactly the same as alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from merging.model import Prompt


@dataclass(slots=True)
class TokenTree:
    """Tokens in an order in which parents come first.

    `answers` holds, for each prompt added and each of its answers, the places whose logits predict the
    answer's tokens, and those tokens.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    answers: list[list[tuple[list[int], tuple[int, ...]]]] = field(default_factory=list)
    _places: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def add(self, prompt: Prompt) -> None:
        """Add the prompt with all its answers; an answer's last token is predicted and never read."""
        end = self._path(-1, prompt.question)[-1]
        self.answers.append([([end, *self._path(end, answer[:-1])], answer) for answer in prompt.answers])

    def new_tokens(self, prompt: Prompt) -> int:
        """An upper bound on the tokens that the prompt would add: answers count in full."""
        at, shared = -1, 0
        for token in prompt.question:
            at = self._places.get((at, token), -2)
            if at == -2:
                break
            shared += 1
        return len(prompt.question) - shared + sum(len(answer) - 1 for answer in prompt.answers)

    @property
    def depths(self) -> list[int]:
        """The position of every token."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    def attention_mask(self) -> NDArray[np.bool_]:
        """(tokens, tokens): whether the row's token sees the column's: itself and its ancestors."""
        mask = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for at, parent in enumerate(self.parents):
            if parent >= 0:
                mask[at] = mask[parent]
            mask[at, at] = True
        return mask

    def _path(self, start: int, tokens: Iterable[int]) -> list[int]:
        """The places of the tokens below `start`, adding new ones."""
        at, places = start, []
        for token in tokens:
            place = self._places.get((at, token))
            if place is None:
                place = self._places[(at, token)] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(at)
            places.append(place)
            at = place
        return places


def tree_of(prompts: Iterable[Prompt]) -> TokenTree:
    """One tree of all the prompts, in their order."""
    tree = TokenTree()
    for prompt in prompts:
        tree.add(prompt)
    return tree


def pack_prompts(prompts: Sequence[Prompt], width: int) -> list[list[int]]:
    """Indices of prompts in groups whose trees have at most `width` tokens, or hold one prompt.

    Prompts that begin alike come together.
    """
    groups: list[list[int]] = []
    tree = TokenTree()
    for index in sorted(range(len(prompts)), key=lambda index: (prompts[index].question, index)):
        if not groups or len(tree.tokens) + tree.new_tokens(prompts[index]) > width:
            groups.append([])
            tree = TokenTree()
        tree.add(prompts[index])
        groups[-1].append(index)
    return groups
