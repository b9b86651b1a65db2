"""Beam search: the answers with the highest log-probability for their length that a few prefixes side by side find.

It follows transformers' `generate(num_beams=..., early_stopping=False)` (5.24, generation/utils.py, `_beam_search`): at
every step the 2K likeliest continuations of a prompt's K beams are taken; those among the first K that end are answers,
the first K that do not are the next beams.

Shape letters: P prompts, K beams of a prompt, C candidates, B rows of the cache (all prompts' beams), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.generation.decode import decode_one, prefill
from mmgpt.generation.sampling import check_logits
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.multimodal import MultimodalModel


@dataclass(frozen=True)
class Beam:
    """A prefix of an answer, or a whole one.

    Attributes:
        tokens: its ids, the end token included.
        logprobs: one a token.
        total: their sum.
        score: of a whole answer, total / tokens ** length_penalty; 0 until then.
        origin: which of the beams before it goes on from.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0
    score: float = 0.0
    origin: int = 0


@dataclass
class _Search:
    """The search of one prompt: its beams, and the best answers so far, best first."""

    num_beams: int
    length_penalty: float
    room: int  # tokens an answer may have
    live: list[Beam] = field(default_factory=lambda: [Beam()])
    found: list[Beam] = field(default_factory=list)

    def advance(self, candidates: Sequence[Beam], eos_token_id: int) -> bool:
        """Take a step's candidates, likeliest first; True if the search goes on."""
        length = len(candidates[0].tokens)
        ends = [beam.tokens[-1] == eos_token_id or length == self.room for beam in candidates]
        for beam, is_end in zip(candidates[: self.num_beams], ends, strict=False):
            if is_end:
                score = beam.total / length**self.length_penalty
                self.found.append(Beam(beam.tokens, beam.logprobs, beam.total, score))
        self.found = sorted(self.found, key=lambda beam: -beam.score)[: self.num_beams]
        self.live = [beam for beam, is_end in zip(candidates, ends, strict=True) if not is_end][: self.num_beams]
        if not self.live or len(self.found) < self.num_beams:
            return bool(self.live)
        # a guess at what the beams can reach, not a bound, where longer answers are favoured
        return self.live[0].total / length**self.length_penalty > self.found[-1].score


def beam_search(
    model: MultimodalModel,
    prompts: Sequence[Rendered],
    *,
    num_beams: int,
    length_penalty: float,
    max_new_tokens: int,
    eos_token_id: int,
) -> list[list[Beam]]:
    """The up to `num_beams` best answers to each prompt, best first.

    An answer ends at token `eos_token_id`, at the budget or at the context's end.

    Raises:
        UserError: if the vocabulary is too small for so many beams.
    """
    if 2 * num_beams > model.vocab_size:
        raise UserError(f"num_beams={num_beams} is over half of the vocabulary of {model.vocab_size}; take fewer beams")
    context = model.config.decoder.context
    rooms = [min(max_new_tokens, context - len(prompt.ids)) for prompt in prompts]
    searches = [_Search(num_beams, length_penalty, room) for room in rooms]
    cache, logits_BV = prefill(model, prompts, max(rooms))
    going = searches
    while True:
        check_logits(logits_BV)
        steps = [
            (search, at, search.advance(candidates, eos_token_id))
            for at, (search, candidates) in enumerate(zip(going, _candidates(logits_BV, going), strict=True))
        ]
        width = len(logits_BV) // len(going)  # 1 after the prompts were read, then K
        rows = [at * width + beam.origin for search, at, goes_on in steps if goes_on for beam in search.live]
        going = [search for search, _, goes_on in steps if goes_on]
        if not going:
            return [search.found for search in searches]
        cache.select_rows(torch.tensor(rows, device=model.device))
        last = [beam.tokens[-1] for search in going for beam in search.live]
        logits_BV = decode_one(model, cache, torch.tensor(last, device=model.device))


def _candidates(logits_BV: Tensor, searches: Sequence[_Search]) -> list[list[Beam]]:
    """The likeliest 2K continuations of each prompt's beams, likeliest first."""
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    vocab = logprobs_BV.shape[-1]
    totals_B = torch.tensor([beam.total for search in searches for beam in search.live], device=logprobs_BV.device)
    joint_PC = (totals_B[:, None] + logprobs_BV).view(len(searches), -1)
    best = joint_PC.topk(2 * searches[0].num_beams, dim=-1)
    own_PC = logprobs_BV.view(len(searches), -1).gather(1, best.indices)
    found = zip(searches, best.indices.tolist(), best.values.tolist(), own_PC.tolist(), strict=True)
    return [
        [
            _continued(search.live[index // vocab], index % vocab, logprob, total, index // vocab)
            for index, total, logprob in zip(indices, totals, own, strict=True)
        ]
        for search, indices, totals, own in found
    ]


def _continued(beam: Beam, token: int, logprob: float, total: float, origin: int) -> Beam:
    return Beam((*beam.tokens, token), (*beam.logprobs, logprob), total, origin=origin)
