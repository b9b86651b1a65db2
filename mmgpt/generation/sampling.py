"""Choosing the next token: pure functions over logits, and the sampler of a request that composes them.

Shape letters: B rows, C candidates, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from mmgpt.config import Config, Seed
from mmgpt.generation.constrain import Constraint, GrammarMask, make_grammar_mask
from mmgpt.inputs.tokenizer import Tokenizer

GOLDEN = 0x9E3779B1  # 2^32 / the golden ratio: its multiples mod 2^32 lie far apart
TOP_P_FIRST_TRY = 256  # tokens in which top-p mostly finds its share


class GenerateConfig(Config):
    """How to decode. Greedy unless a temperature is given."""

    max_new_tokens: PositiveInt = 64
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # 0 is greedy
    top_k: NonNegativeInt = 0  # with a temperature, as are top_p and min_p; 0 keeps all
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)  # a share of the likeliest token's probability
    repetition_penalty: PositiveFloat = Field(default=1.0, allow_inf_nan=False)  # above 1 for fewer repetitions
    best_of: PositiveInt = 1  # answers drawn a prompt, of which that with the highest mean log-probability is taken
    num_beams: PositiveInt = 1  # beam search with so many answers side by side
    length_penalty: float = Field(
        default=1.0, allow_inf_nan=False
    )  # beams are ranked by logprob / tokens^length_penalty
    top_logprobs: NonNegativeInt = 0  # likeliest alternatives told with every token
    constraint: Constraint | None = None  # the form that an answer must have
    speculation: Literal["lookup", "draft"] | None = None  # guess tokens from the text so far, or by a small model
    draft_tokens: PositiveInt = 5  # guessed for one pass of the model
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # strings that end a reply and are cut off
    seed: Seed = 0  # row i of a call draws from a generator seeded with seed + i

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.best_of > 1 and self.temperature == 0:
            raise ValueError(f"best_of={self.best_of} needs a temperature; without one all answers are the same")
        if self.num_beams == 1:
            if self.length_penalty != 1:
                raise ValueError(f"length_penalty={self.length_penalty} ranks beams; set num_beams, or leave it out")
            return self
        others = {
            "temperature": self.temperature > 0,
            "repetition_penalty": self.repetition_penalty != 1,
            "top_logprobs": self.top_logprobs > 0,
            "constraint": self.constraint is not None,
            "speculation": self.speculation is not None,
            "stop": bool(self.stop),
        }
        for name, is_set in others.items():
            if is_set:
                raise ValueError(f"num_beams={self.num_beams} does not go with {name}; leave one of the two out")
        return self


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Logits with all but the k largest of each row at minus infinity (Fan et al. 2018, arXiv:1805.04833)."""
    if k <= 0 or k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the smallest set of the likeliest tokens that reaches p (Holtzman et al. 2020, arXiv:1904.09751)."""
    if p >= 1:
        return logits_BV
    probabilities_BV = logits_BV.softmax(dim=-1)
    vocab = logits_BV.shape[-1]
    for count in (
        min(TOP_P_FIRST_TRY, vocab),
        vocab,
    ):  # sorting all of a large vocabulary takes longer than a small model's pass
        best = probabilities_BV.topk(count, dim=-1)
        before_BC = best.values.cumsum(dim=-1) - best.values
        if bool((before_BC[:, -1] >= p).all()):
            break
    drop_BV = torch.ones_like(logits_BV, dtype=torch.bool).scatter(-1, best.indices, before_BC >= p)
    return logits_BV.masked_fill(drop_BV, -torch.inf)


def keep_min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the tokens at least `p` times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    if p <= 0:
        return logits_BV
    probabilities_BV = logits_BV.softmax(dim=-1)
    least_B1 = p * probabilities_BV.amax(dim=-1, keepdim=True)
    return logits_BV.masked_fill(probabilities_BV < least_B1, -torch.inf)


def apply_repetition_penalty(logits_V: Tensor, seen_V: Tensor, penalty: float) -> Tensor:
    """Make the tokens of the bool mask `seen_V` less likely (Keskar et al. 2019, arXiv:1909.05858).

    Logits above 0 are divided by the penalty, others multiplied, as transformers does.
    """
    return torch.where(seen_V, torch.where(logits_V < 0, logits_V * penalty, logits_V / penalty), logits_V)


def apply_filters(logits_BV: Tensor, options: GenerateConfig) -> Tensor:
    """Temperature, then top-k, top-p and min-p, in the order of transformers; logits to draw by."""
    warm_BV = logits_BV / options.temperature
    return keep_min_p(keep_top_p(keep_top_k(warm_BV, options.top_k), options.top_p), options.min_p)


def multinomial(logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token id a row (B,), each row from its own generator, so that a row's draw does not depend on its batch."""
    sums_BV = logits_BV.softmax(dim=-1).cpu().double().cumsum(dim=-1)
    shares_B = torch.cat([torch.rand(1, generator=one, dtype=torch.float64) for one in generators])
    picks_B1 = torch.searchsorted(
        sums_BV, shares_B[:, None] * sums_BV[:, -1:], right=True
    )  # by the inverse of the sums
    return picks_B1[:, 0].to(logits_BV.device)


class Sampler:
    """One request's way of choosing: it is asked once for every token, and remembers what it chose.

    Attributes:
        is_plain: it takes the likeliest token whatever came before, so that its rows may be chosen for together.
    """

    def __init__(
        self, options: GenerateConfig, seed: int, prompt_ids: Sequence[int], grammar_mask: GrammarMask | None
    ) -> None:
        self.options, self.prompt_ids, self.grammar_mask = options, prompt_ids, grammar_mask
        self.generator = torch.Generator().manual_seed(seed)
        self.is_plain = options.temperature == 0 and options.repetition_penalty == 1 and grammar_mask is None
        self.seen_V: Tensor | None = None

    def sample(self, logits_V: Tensor) -> int:
        """The next token of this request's text.

        Raises:
            UserError: if its constraint lets no token follow.
        """
        penalty = self.options.repetition_penalty
        if penalty != 1:
            logits_V = apply_repetition_penalty(logits_V, self._seen(logits_V), penalty)
        if self.grammar_mask is not None:
            logits_V = self.grammar_mask.mask(logits_V)
        if self.options.temperature == 0:
            token = int(logits_V.argmax())
        else:
            token = int(multinomial(apply_filters(logits_V[None], self.options), [self.generator]))
        if self.seen_V is not None:
            self.seen_V[token] = True
        if self.grammar_mask is not None:
            self.grammar_mask.accept(token)
        return token

    def _seen(self, logits_V: Tensor) -> Tensor:
        """The tokens (V,) of prompt and answer so far."""
        if self.seen_V is None:
            self.seen_V = torch.zeros_like(logits_V, dtype=torch.bool)
            self.seen_V[torch.tensor(list(self.prompt_ids), dtype=torch.long, device=logits_V.device)] = True
        return self.seen_V


def make_sampler(
    options: GenerateConfig, tokenizer: Tokenizer | None, seed: int, prompt_ids: Sequence[int], eos_token_id: int
) -> Sampler:
    """The sampler of a new request.

    Args:
        options: of this request.
        tokenizer: only constraints need it.
        seed: of what it draws.
        prompt_ids: what the repetition penalty counts as said already.
        eos_token_id: the token that ends an answer, which a constraint allows once it is met.
    Raises:
        UserError: if the constraint cannot be used.
    """
    grammar_mask = None
    if options.constraint is not None:
        if tokenizer is None:
            raise ValueError("a constraint is over the texts of tokens; give make_sampler the tokenizer")
        grammar_mask = make_grammar_mask(options.constraint, tokenizer, eos_token_id)
    return Sampler(options, seed, prompt_ids, grammar_mask)


def sample_tokens(logits_BV: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """The next token id of each row (B,): plain greedy rows together, each other one by its own sampler."""
    ids_B = logits_BV.argmax(dim=-1)
    for row, sampler in enumerate(samplers):
        if not sampler.is_plain:
            ids_B[row] = sampler.sample(logits_BV[row])
    return ids_B


def check_logits(logits_BV: Tensor) -> None:
    """Refuse logits that are not numbers.

    Raises:
        FloatingPointError: if any is NaN.
    """
    if logits_BV.isnan().any():
        raise FloatingPointError("the model's logits are not numbers; its weights are damaged or its training diverged")


def candidate_seed(seed: int, candidate: int) -> int:
    """The seed of a candidate among `best_of`; the first draws as a single answer would.

    torch's generator looks at 32 bits, and neighbouring requests have neighbouring seeds: candidates lie far from all.
    """
    return (seed + candidate * GOLDEN) % 2**32 if candidate else seed


def best_candidate(logprobs: Sequence[Sequence[float]]) -> int:
    """Of answers given by their tokens' log-probabilities, the one with the highest mean; the first of equals."""
    means = [sum(one) / len(one) if one else float("-inf") for one in logprobs]
    return max(range(len(means)), key=means.__getitem__)


@dataclass(frozen=True)
class TokenScore:
    """A token's log-probability under the model, before any option changed it, and the likeliest (id, logprob)."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_scores(logits_BV: Tensor, ids_B: Tensor, top: int = 0) -> list[TokenScore]:
    """The score of each row's chosen token, with the `top` likeliest alternatives, most likely first."""
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    own = logprobs_BV.gather(1, ids_B[:, None])[:, 0].tolist()
    if not top:
        return [TokenScore(logprob) for logprob in own]
    best = logprobs_BV.topk(min(top, logprobs_BV.shape[-1]), dim=-1)
    pairs = zip(own, best.indices.tolist(), best.values.tolist(), strict=True)
    return [TokenScore(logprob, tuple(zip(ids, values, strict=True))) for logprob, ids, values in pairs]
