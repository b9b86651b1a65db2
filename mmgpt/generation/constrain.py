"""Constrained decoding: at every step only the tokens that can still lead to an answer of the wanted form.

llguidance (extra `constrain`) keeps the parser and gives the masks over the vocabulary.

Shape letters: V vocabulary.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmgpt.config import Config, UserError
from mmgpt.inputs.tokenizer import Tokenizer

JSON_STYLE = {  # as json.dumps writes; free whitespace would let a model go on with it without end
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
BOUNDS = (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1))
EXCLUSIVE_BOUND_STEP = 1e-6
NonEmpty = Annotated[str, Field(min_length=1)]


class Constraint(Config):
    """What an answer must look like, its end token not counted: exactly one of the four."""

    choices: Annotated[tuple[NonEmpty, ...], Field(min_length=1)] | None = None  # one of these texts
    regex: NonEmpty | None = None  # the whole answer, in the syntax of Rust's regex crate
    json_schema: dict[str, Any] | None = None  # as far as llguidance reads it; a keyword it does not know is refused
    grammar: NonEmpty | None = None  # Lark, in llguidance's dialect

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in Constraint.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a constraint is one of {', '.join(Constraint.model_fields)}, not {' and '.join(given) or 'none'}"
            )
        return self


class GrammarMask:
    """The constraint of one answer: which tokens may come next, given those so far."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def mask(self, logits_V: Tensor) -> Tensor:
        """Logits with the tokens that may not come next at minus infinity.

        Raises:
            UserError: if none may, or the parser has reached its limits.
        """
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        error = self.matcher.get_error()
        allowed_V = np.zeros(len(logits_V), dtype=bool)  # rows of the embedding past the tokenizer's end stay forbidden
        found = np.unpackbits(bits, bitorder="little", count=min(len(logits_V), 8 * len(bits))).astype(bool)
        allowed_V[: len(found)] = found
        is_stuck = self.matcher.is_stopped() and not self.matcher.is_accepting()
        if "NoExtension" in error or (not error and (is_stuck or not found.any())):
            raise UserError(
                "the constraint cannot be met: nothing that this tokenizer writes satisfies it from here on; loosen it"
            )
        if error:
            raise UserError(f"the constraint cannot be followed: {_first_line(error)}")
        return logits_V.masked_fill(~torch.from_numpy(allowed_V).to(logits_V.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Go on by a token that `mask` allowed."""
        self.matcher.consume_token(token)


def make_grammar_mask(constraint: Constraint, tokenizer: Tokenizer, eos_token_id: int) -> GrammarMask:
    """The guide of a new answer, which may stop with token `eos_token_id` when the constraint is met and not before.

    Raises:
        UserError: if llguidance is absent, does not know the tokenizer's kind, cannot read the constraint, or nothing
            satisfies it.
    """
    for choice in constraint.choices or ():
        if tokenizer.decode(tokenizer.encode(choice)) != choice:
            raise UserError(f"constraint.choices: the tokenizer cannot write {choice!r}; leave it out")
    return GrammarMask(_matcher(tokenizer, eos_token_id, _grammar(constraint)).deep_copy())


def _grammar(constraint: Constraint) -> str:
    llguidance = _library()
    matcher = llguidance.LLMatcher
    if constraint.choices is not None:
        return str(matcher.grammar_from_lark(f"start: {_alternatives(constraint.choices)}"))
    if constraint.regex is not None:
        return str(matcher.grammar_from_regex(constraint.regex))
    if constraint.json_schema is not None:
        return str(matcher.grammar_from_json_schema(_narrowed(constraint.json_schema), overrides=JSON_STYLE))
    return str(matcher.grammar_from_lark(constraint.grammar))


def _narrowed(node: Any, holds_schemas: bool = True) -> Any:
    """A JSON schema whose exclusive bounds at whole numbers are inclusive ones, a step further in.

    llguidance 1.9 lets the bound itself through where the other bound is less than 1 away: -2 for -2.5 <= x < -2.
    """
    if isinstance(node, list):
        return [_narrowed(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {
        key: value
        if holds_schemas and key in ("enum", "const", "default", "examples")
        else _narrowed(
            value, not holds_schemas or key not in ("properties", "patternProperties", "$defs", "definitions")
        )
        for key, value in node.items()
    }
    for exclusive, inclusive, inwards in BOUNDS:
        bound = found.get(exclusive)
        if (
            isinstance(bound, int | float)
            and not isinstance(bound, bool)
            and float(bound).is_integer()
            and abs(bound) < 1e9
        ):
            del found[exclusive]
            inner = bound + inwards * EXCLUSIVE_BOUND_STEP
            other = found.get(inclusive, inner)
            found[inclusive] = max(inner, other) if inwards > 0 else min(inner, other)
    return found


def _alternatives(texts: Sequence[str]) -> str:
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


@lru_cache(maxsize=64)  # requests of one application share their constraint
def _matcher(tokenizer: Tokenizer, eos_token_id: int, grammar: str) -> Any:
    matcher = _library().LLMatcher(_vocabulary(tokenizer, eos_token_id), grammar, log_level=0)
    if matcher.is_error():
        raise UserError(f"the constraint cannot be used: {_first_line(matcher.get_error())}")
    GrammarMask(matcher.deep_copy()).mask(
        torch.zeros(len(tokenizer))
    )  # what nothing satisfies is told before a prompt is read
    return matcher


@lru_cache(maxsize=4)  # a second for a vocabulary of 150,000 tokens
def _vocabulary(tokenizer: Tokenizer, eos_token_id: int) -> Any:
    try:
        return _library().LLTokenizer(tokenizer.core.to_str(), n_vocab=len(tokenizer), eos_token=eos_token_id)
    except Exception as error:  # the library raises ValueError and its own
        raise UserError(
            f"llguidance cannot read this tokenizer ({_first_line(str(error))}); constraints need a byte-level BPE, "
            "or one that falls back to bytes"
        ) from None


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError("constraints need llguidance; pip install 'mmgpt[constrain]'") from None
    return llguidance


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
