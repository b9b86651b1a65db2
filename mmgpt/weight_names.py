"""Tables between the names of weights here and in other libraries, read in both directions.

A rule is a pair of names in which `{}` stands for a layer's number: one table a family says all there is to say.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.files import first_of


def names_part(name: str, pattern: str) -> bool:
    """Whether a glob names a weight or layer, or a part that holds it: `decoder`, `encoders.*`, `*.norm.weight`."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


class Rule(NamedTuple):
    """One line of a table.

    Attributes:
        theirs: the outside name, `{}` for each number in it.
        ours: our name; several where the outside weight is these joined along their first axis, equally long.
        transposed: the outside matrix is stored (in, out), as GPT-2's are.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Our names."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


def to_ours(
    weights: Mapping[str, Tensor], rules: Sequence[Rule], where: str, ignored: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Weights by our names; views of the same memory where nothing has to be turned.

    Args:
        weights: by outside name.
        rules: the family's table; the first that fits a name counts.
        where: what an error begins with.
        ignored: regular expressions of outside names that hold nothing to learn, such as saved masks.
    Raises:
        UserError: if a name is in no rule.
    """
    compiled = [(_pattern(rule.theirs), rule) for rule in rules]
    skipped = [re.compile(pattern) for pattern in ignored]
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, weight in weights.items():
        if any(pattern.fullmatch(name) for pattern in skipped):
            continue
        found = next(((match, rule) for pattern, rule in compiled if (match := pattern.fullmatch(name))), None)
        if found is None:
            unknown.append(name)
            continue
        match, rule = found
        turned = weight.T.contiguous() if rule.transposed else weight
        for ours, piece in zip(rule.names, turned.chunk(len(rule.names)), strict=True):
            renamed[ours.format(*match.groups())] = piece
    if unknown:
        raise UserError(f"{where}: {len(unknown)} unexpected weights: {first_of(unknown)}; is it of this family?")
    return renamed


def to_theirs(weights: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """The same backwards: weights by outside names, in the order of ours.

    Raises:
        UserError: if one of our names is in no rule, or a joined weight lacks a piece.
    """
    renamed: dict[str, Tensor] = {}
    for name in weights:
        found = _find(name, rules)
        if found is None:
            raise UserError(f"{name}: this family has no place for such a weight")
        rule, numbers = found
        pieces = [ours.format(*numbers) for ours in rule.names]
        absent = [piece for piece in pieces if piece not in weights]
        if absent:
            raise UserError(f"{name}: is stored with {absent[0]}, which is missing")
        if pieces[0] == name:
            joined = weights[name] if len(pieces) == 1 else torch.cat([weights[piece] for piece in pieces])
            renamed[rule.theirs.format(*numbers)] = joined.T.contiguous() if rule.transposed else joined
    return renamed


def their_name(name: str, rules: Sequence[Rule]) -> str | None:
    """The outside name of one of our weights, None where the family has none."""
    found = _find(name, rules)
    return None if found is None else found[0].theirs.format(*found[1])


def _find(name: str, rules: Iterable[Rule]) -> tuple[Rule, tuple[str, ...]] | None:
    for rule in rules:
        for ours in rule.names:
            match = _pattern(ours).fullmatch(name)
            if match:
                return rule, match.groups()
    return None


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(map(re.escape, name.split("{}"))))
