"""Which texts of a source are worth keeping: neither too short nor too long, and no near copy of an earlier one.

Two texts are near copies where the sets of their five-word sequences overlap (Jaccard), estimated by MinHash and found
by locality-sensitive hashing (Broder 1997, doi:10.1109/SEQUEN.1997.666900; Lee et al. 2022, arXiv:2107.06499).
"""

import re
from collections import Counter
from dataclasses import dataclass

from mmgpt.config import UserError
from mmgpt.datasets.sample import Text
from mmgpt.datasets.source import Source

WORDS = 5  # of one sequence
HASHES = 128


@dataclass(frozen=True)
class DedupResult:
    """Indexes of what is kept, in order, and how many were dropped for which reason."""

    indexes: tuple[int, ...]
    dropped: Counter[str]


def keep_texts(
    source: Source, *, min_characters: int = 0, max_characters: int | None = None, similarity: float | None = None
) -> DedupResult:
    """Go through a source of texts once, and keep the first of each group of near copies.

    Args:
        min_characters: shorter texts are dropped.
        max_characters: longer ones are, too.
        similarity: Jaccard similarity, between 0 and 1, from which two texts count as copies; None keeps copies.
    Raises:
        UserError: if a sample holds media, for the same words may be said of different pictures.
    """
    index, kept, dropped = _index(similarity), [], Counter[str]()
    for number in range(len(source)):
        text = _text(source, number)
        if len(text) < min_characters:
            dropped["too short"] += 1
        elif max_characters is not None and len(text) > max_characters:
            dropped["too long"] += 1
        elif index is not None and index.holds_near(text, number):
            dropped["near copies"] += 1
        else:
            kept.append(number)
    return DedupResult(tuple(kept), dropped)


def _text(source: Source, number: int) -> str:
    sample = source[number]
    if not all(isinstance(part, Text) for turn in sample.turns for part in turn.parts):
        raise UserError(f"{sample.key}: holds media; only sources of texts can be filtered by their words")
    return "\n".join(turn.text for turn in sample.turns)


class _Index:
    """The texts so far."""

    def __init__(self, similarity: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise UserError("near copies are found by datasketch; install it with pip install 'mmgpt[data]'") from None
        self.hashed, self.similarity = MinHash, similarity
        missed = (0.1, 0.9)  # what is found is verified below, so that only what is not found costs
        self.lsh = MinHashLSH(threshold=similarity, num_perm=HASHES, weights=missed)
        self.signatures: dict[int, MinHash] = {}

    def holds_near(self, text: str, number: int) -> bool:
        """Whether a near copy came before; if not, the text is taken up."""
        words = re.findall(r"\w+", text.lower())
        sequences = {" ".join(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}
        signature = self.hashed(num_perm=HASHES, seed=1)
        signature.update_batch([sequence.encode() for sequence in sorted(sequences)])
        if any(signature.jaccard(self.signatures[one]) >= self.similarity for one in self.lsh.query(signature)):
            return True
        self.lsh.insert(number, signature)
        self.signatures[number] = signature
        return False


def _index(similarity: float | None) -> _Index | None:
    if similarity is None:
        return None
    if not 0 < similarity < 1:
        raise UserError(f"similarity={similarity}: a similarity lies between 0 and 1; 0.8 is usual")
    return _Index(similarity)
