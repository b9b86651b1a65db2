"""Rows of added tokens that learn alone: `train: ["decoder.embedding[new]"]` moves no bit of any other row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmgpt.checkpoints.save_load import TOKEN_TABLES
from mmgpt.config import UserError
from mmgpt.training.optim import NEW_ROWS, matches


def freeze_old_rows(model: nn.Module, patterns: Sequence[str], new_tokens: Sequence[int]) -> dict[str, RemovableHandle]:
    """Take the gradient from all but the new rows of what only patterns with `[new]` name; `remove()` undoes it.

    A row without a gradient has no moments either, and tables of tokens never decay, so that it stays as it is under
    every optimizer. A weight that another pattern names too learns whole.

    Args:
        model: after `freeze_except` with the same patterns.
        patterns: the stage's `train`.
        new_tokens: ids of the tokens that were added to the vocabulary.
    Returns:
        The hook of each such weight, by its name.
    Raises:
        UserError: if there are no added tokens, or the weight is no table of tokens.
    """
    marked = [pattern for pattern in patterns if pattern.endswith(NEW_ROWS)]
    whole = [pattern for pattern in patterns if not pattern.endswith(NEW_ROWS)]
    if marked and not new_tokens:
        raise UserError(
            f"train: {marked[0]} is for the rows of added tokens, and this model has none; "
            f"add tokens to its tokenizer, or write {marked[0].removesuffix(NEW_ROWS)}"
        )
    hooks: dict[str, RemovableHandle] = {}
    for name, parameter in model.named_parameters():
        own = [pattern for pattern in marked if matches(name, pattern)]
        if own and name not in TOKEN_TABLES:
            raise UserError(
                f"train: {own[0]} names {name}, which has no rows of tokens; "
                f"only decoder.embedding and decoder.head (where the model has one of its own) may end in {NEW_ROWS}"
            )
        if own and not any(matches(name, pattern) for pattern in whole):
            rows_N = torch.tensor(list(new_tokens), device=parameter.device)
            hooks[name] = parameter.register_hook(lambda gradient, rows_N=rows_N: _only(gradient, rows_N))
    return hooks


def _only(gradient_VD: Tensor, rows_N: Tensor) -> Tensor:
    kept_VD = torch.zeros_like(gradient_VD)
    kept_VD[rows_N] = gradient_VD[rows_N]
    return kept_VD
