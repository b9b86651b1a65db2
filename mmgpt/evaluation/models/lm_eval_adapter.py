"""An mmgpt checkpoint under lm-evaluation-harness (lm_eval 0.4), so that figures can be checked against ours.

    from mmgpt.evaluation.models.lm_eval_adapter import MmgptLM
    lm_eval.simple_evaluate(MmgptLM("runs/quickstart"), tasks=["hellaswag"])

Importing this module also registers it there by the name `mmgpt`. Texts are taken raw; context and continuation are
tokenised apart, as `Assistant.score` does. A context that is too long loses its beginning, as is usual there.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmgpt.config import UserError
from mmgpt.generation.assistant import Assistant, load

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:  # the harness is no dependency; without it the class can be made by nobody
    LM, register_model = object, lambda name: lambda cls: cls

logger = logging.getLogger(__name__)
DRAWN = {"temperature", "top_p", "top_k", "min_p"}


@register_model("mmgpt")
class MmgptLM(LM):  # type: ignore[misc]
    """A language model as the harness calls it."""

    def __init__(
        self,
        pretrained: Assistant | str | Path,
        *,
        device: str | None = None,
        batch_size: int | str = 32,
        max_batch_size: int | None = None,  # which the harness hands to every model
    ) -> None:
        """Of an Assistant, or of the path of one; results do not depend on the batch size.

        Raises:
            UserError: if lm_eval is not installed, or there is no such model.
        """
        if LM is object:
            raise UserError("this needs lm-evaluation-harness; pip install lm_eval")
        super().__init__()
        self.assistant = pretrained if isinstance(pretrained, Assistant) else load(pretrained, device=device or "auto")
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 32  # there it may be "auto"
        self.context = self.assistant.renderer.context
        self.begin = list(self.assistant.tokenizer.begin)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each (context, continuation) the log-probability, and if greedy decoding would write it."""
        places: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            places.setdefault(request.args[0], []).append(number)
        tails = [self._ids(request.args[1]) for request in requests]
        longest = {text: max(len(tails[number]) for number in numbers) for text, numbers in places.items()}
        heads = {text: self._cut(self._head(text), self.context + 1 - longest[text]) for text in places}
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        texts = list(places)
        for at in range(0, len(texts), self.batch_size):
            some = texts[at : at + self.batch_size]
            prompts = [heads[text] for text in some]
            scores = self.assistant.score_ids(prompts, [[tails[n] for n in places[text]] for text in some])
            greedy = self.assistant.continue_ids(prompts, [{"max_new_tokens": longest[text]} for text in some])
            for text, own, reply in zip(some, scores, greedy, strict=True):
                for number, logprobs in zip(places[text], own, strict=True):
                    found[number] = sum(logprobs), reply.tokens[: len(logprobs)] == tails[number]
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of each whole text the log-probability, in windows of the context that overlap by one token."""
        found = []
        for request in requests:
            prefix = self._head("")[-1]
            windows = get_rolling_token_windows(self._ids(request.args[0]), prefix, self.context, 1)
            heads, tails = zip(*map(make_disjoint_window, windows), strict=True)
            scores = self.assistant.score_ids(heads, [[tail] for tail in tails])
            found.append(sum(sum(own[0]) for own in scores))
        return found

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text that follows each context, up to one of the strings in `until`."""
        options = [self._options(request.args[1]) for request in requests]
        prompts = [
            self._cut(self._head(request.args[0]), self.context - own["max_new_tokens"])
            for request, own in zip(requests, options, strict=True)
        ]
        return [reply.text for reply in self.assistant.continue_ids(prompts, options, batch_size=self.batch_size)]

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = dict(given)
        until = asked.pop("until", None) or []
        stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        most = asked.pop("max_gen_toks", None) or asked.pop("max_new_tokens", None) or 256
        samples = asked.pop("do_sample", None)
        odd = sorted(asked.keys() - DRAWN)
        if odd:
            raise UserError(f"{odd[0]}={asked[odd[0]]!r} of a task's generation_kwargs is not known; leave it out")
        is_drawn = samples if samples is not None else asked.get("temperature", 0) > 0
        if is_drawn:
            asked = {"temperature": 1.0, **asked}
        drawn = asked if is_drawn and asked["temperature"] > 0 else {}
        return {"max_new_tokens": min(int(most), self.context - 1), "stop": stop, **drawn}

    def _ids(self, text: str) -> list[int]:
        return list(self.assistant.tokenizer.encode(text))

    def _head(self, text: str) -> list[int]:
        """A context's tokens; an empty one is what begins every text, or an end token as for texts in a row."""
        return [*self.begin, *self._ids(text)] or [self.assistant.eos_token_id]

    def _cut(self, ids: list[int], room: int) -> list[int]:
        if len(ids) <= room:
            return ids
        logger.warning(
            "a prompt of %d tokens was cut to its last %d, for the context is %d", len(ids), room, self.context
        )
        kept = room - len(self.begin)
        if kept < 1:
            raise UserError(f"a continuation fills the context of {self.context} tokens; shorten it")
        return [*self.begin, *ids[-kept:]]
