"""The engine: requests join and leave a running batch, so that short answers do not wait for long ones.

A step either reads waiting prompts into free rows of the cache, or adds a token to every running row, several where
guesses hold. Rows at work lie in front; one that ends is filled by the last, so that no work is done for empty rows.

Source: Yu et al. 2022 (Orca, OSDI). Shape letters: B rows, V vocabulary.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmgpt.config import UserError
from mmgpt.generation.compiled_step import Step
from mmgpt.generation.decode import Reply, cut_at, decode_many, decode_one, text_of
from mmgpt.generation.prefill import Prefiller, TokenSequence
from mmgpt.generation.sampling import GenerateConfig, Sampler, make_sampler, sample_tokens, token_scores
from mmgpt.generation.speculative import PromptLookup, Proposer
from mmgpt.inputs.rendered import Rendered
from mmgpt.inputs.tokenizer import Tokenizer
from mmgpt.model.cache import KVCache
from mmgpt.model.multimodal import MultimodalModel

BUCKET = 64  # the cache grows by so many slots


@dataclass(eq=False)
class Request:
    """A prompt on its way to its answer.

    Attributes:
        budget: the most tokens that its options and the context allow.
        proposer: guesses tokens that one pass of the model then judges; None for a token a pass.
        reply: grows with every step.
        error: why it ended without an answer.
    """

    text: TokenSequence
    options: GenerateConfig
    sampler: Sampler
    budget: int
    proposer: Proposer | None = None
    reply: Reply = field(default_factory=Reply)
    is_done: bool = False
    error: Exception | None = None
    started: float = field(default_factory=time.perf_counter)

    def result(self) -> Reply:
        """The finished reply.

        Raises:
            FloatingPointError: if the model's logits were not numbers; or what else went wrong in answering.
        """
        if self.error is not None:
            raise self.error
        return self.reply

    @property
    def reach(self) -> int:
        """Slots of the cache that it may come to need."""
        return len(self.text.prompt.ids) + self.budget + (self.options.draft_tokens if self.proposer else 0)


class Engine:
    """A model with a running batch; calls from several threads take turns, a step each."""

    def __init__(
        self, model: MultimodalModel, tokenizer: Tokenizer, eos_token_id: int, step: Step | None = None
    ) -> None:
        """An idle engine.

        Args:
            model: it is set to evaluation.
            tokenizer: of the replies' texts.
            eos_token_id: the token that ends a reply.
            step: adds a token to every row; `decode_one` if not given.
        """
        self.model, self.tokenizer, self.eos_token_id = model, tokenizer, eos_token_id
        self.decode = step or decode_one
        self.prefiller = Prefiller(model)
        self.lookup = PromptLookup()
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # the request of row i of the cache
        self.most_rows: int | None = None  # that memory has room for, once it ran out
        self.cache: KVCache | None = None
        self.lock = threading.RLock()  # held for a step, or a use of the reader

    def submit(self, prompt: Rendered, options: GenerateConfig, draft: Proposer | None = None) -> Request:
        """Hand a request in; its draws are seeded with `options.seed`.

        Args:
            prompt: rendered.
            options: of this request.
            draft: guesses for options with `speculation: draft`.
        """
        text = self.prefiller.text(prompt)
        sampler = make_sampler(options, self.tokenizer, options.seed, prompt.ids, self.eos_token_id)
        room = self.model.config.decoder.context - len(prompt.ids)
        proposer = {None: None, "lookup": self.lookup, "draft": draft}[options.speculation]
        request = Request(text, options, sampler, min(options.max_new_tokens, room), proposer)
        with self.lock:
            if not self.waiting and not self.running:
                self.model.eval()
                self.prefiller.refresh()
            self.waiting.append(request)
        return request

    @torch.inference_mode()
    def cancel(self, request: Request) -> None:
        """Take a request out, unless it is done; its row is free at once."""
        with self.lock:
            if not request.is_done:
                request.reply.finish_reason = "cancelled"
                self._finish(request)

    def generate(
        self,
        prompts: Iterable[tuple[Rendered, GenerateConfig]],
        max_batch: int,
        draft: Proposer | None = None,
    ) -> Iterator[Reply]:
        """The replies in the order of the prompts, which are taken from their source as rows become free.

        Args:
            prompts: prompts with their options.
            max_batch: of these prompts in the batch.
            draft: as of `submit`.
        """
        source = iter(prompts)
        in_flight: deque[Request] = deque()  # in order; done ones at the head are given out
        try:
            while True:
                while sum(not one.is_done for one in in_flight) < max_batch and (found := next(source, None)):
                    in_flight.append(self.submit(*found, draft))
                while in_flight and in_flight[0].is_done:
                    yield in_flight.popleft().result()
                if not in_flight:
                    return
                self.step()
        finally:
            for request in in_flight:
                self.cancel(request)

    @torch.inference_mode()
    def step(self) -> None:
        """Read some waiting prompts if there is room for them, else add a token or more to every running row."""
        with self.lock:
            free = len(self.waiting) if self.most_rows is None else self.most_rows - len(self.running)
            group, reach = self._next_batch(free) if self.waiting and free > 0 else ([], 0)
            rows = group or list(self.running)
            try:
                self._join(group, reach) if group else self._advance()
            except Exception as error:
                if not _is_out_of_memory(error):
                    self._fail(rows, error)
                elif len({*self.running, *group}) > 1:
                    self._halve(group)
                else:
                    self._fail(rows, _too_large(rows[0]))

    def _next_batch(self, free: int) -> tuple[list[Request], int]:
        """Waiting requests to read in one pass, and the slots that takes."""
        candidates = {one.text: one for one, _ in zip(self.waiting, range(free), strict=False)}
        texts, reach = self.prefiller.next_batch(list(candidates))
        return [candidates[text] for text in texts], reach

    def _join(self, group: list[Request], reach: int) -> None:
        held = len(self.running)
        cache = self._grown(held + len(group), max(reach, *(one.reach for one in group)))
        logits_BV = self.prefiller.read(cache.view(held, len(group)), [one.text for one in group])
        for one in group:
            self.waiting.remove(one)
        self.running += group
        self._choose(group, logits_BV)

    def _advance(self) -> None:
        if not self.running:
            return
        assert self.cache is not None
        rows = list(self.running)
        cache = self.cache.view(0, len(rows))
        lengths = [len(one.text) - 1 for one in rows]  # the last token is not in the cache yet
        cache.lengths_B = torch.tensor(lengths, device=self.model.device)
        lasts, guesses = [one.text.tokens[-1] for one in rows], self._guesses(rows)
        if not any(guesses):
            self._choose(rows, self.decode(self.model, cache, torch.tensor(lasts, device=self.model.device)))
            return
        ids = [[last, *guess] for last, guess in zip(lasts, guesses, strict=True)]
        logits_BTV = decode_many(self.model, cache, ids)
        going = list(range(len(rows)))  # those whose guesses held so far
        for step in range(logits_BTV.shape[1]):
            self._choose([rows[at] for at in going], logits_BTV[going, step])
            going = [
                at for at in going if not rows[at].is_done and guesses[at][step : step + 1] == rows[at].text.tokens[-1:]
            ]
            if not going:
                return

    def _guesses(self, rows: Sequence[Request]) -> list[list[int]]:
        """What may follow each row: no more than it may still say less one, which a pass gives anyway."""
        assert self.cache is not None
        room = min(self.model.config.decoder.context, self.cache.size) - max(len(one.text) for one in rows)
        guesses: dict[Request, list[int]] = {}
        for proposer in dict.fromkeys(one.proposer for one in rows if one.proposer):
            asked = [one for one in rows if one.proposer is proposer]
            most = {one: min(one.options.draft_tokens, one.budget - len(one.reply.tokens) - 1, room) for one in asked}
            if (count := max(most.values())) > 0:
                found = proposer.propose([one.text for one in asked], count)
                guesses |= {one: guess[: max(0, most[one])] for one, guess in zip(asked, found, strict=True)}
        return [guesses.get(one, []) for one in rows]

    def _choose(self, rows: list[Request], logits_BV: Tensor) -> None:
        sums_B = logits_BV.logsumexp(dim=-1)
        for one, is_number in zip(list(rows), sums_B.isfinite().tolist(), strict=True):
            if not is_number:
                self._fail([one], _not_numbers(one))
        plain = [at for at, one in enumerate(rows) if one.sampler.is_plain and not one.is_done]
        others = [[at] for at, one in enumerate(rows) if not one.sampler.is_plain and not one.is_done]
        for some in ([plain] if plain else []) + others:
            chosen_BV = logits_BV if len(some) == len(rows) else logits_BV[some]
            try:
                ids_B = sample_tokens(chosen_BV, [rows[at].sampler for at in some])
            except UserError as error:  # its constraint lets no token follow
                self._fail([rows[at] for at in some], error)
                continue
            self._tell_best([rows[at] for at in some], chosen_BV, ids_B)
            logprobs_B = chosen_BV.gather(1, ids_B[:, None])[:, 0] - sums_B[some]
            now = time.perf_counter()
            for at, token, logprob in zip(some, ids_B.tolist(), logprobs_B.tolist(), strict=True):
                self._take(rows[at], token, logprob, now)

    def _tell_best(self, rows: list[Request], logits_BV: Tensor, ids_B: Tensor) -> None:
        most = max(one.options.top_logprobs for one in rows)
        for one, scored in zip(rows, token_scores(logits_BV, ids_B, most) if most else [], strict=False):
            if one.options.top_logprobs:
                one.reply.top.append(scored.top[: one.options.top_logprobs])

    def _take(self, one: Request, token: int, logprob: float, now: float) -> None:
        one.text.tokens.append(token)
        reply = one.reply
        reply.tokens.append(token)
        reply.logprobs.append(logprob)
        if len(reply.tokens) == 1:
            reply.seconds_to_first = now - one.started
        stops = one.options.stop
        if token == self.eos_token_id or (stops and cut_at(self.tokenizer.decode(reply.tokens), stops) is not None):
            reply.finish_reason = "stop"
        elif len(reply.tokens) < one.budget:
            return
        reply.seconds = now - one.started
        self._finish(one)

    def _finish(self, request: Request) -> None:
        """End a request; the last row takes the place of its own."""
        request.is_done = True
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            row, last = self.running.index(request), self.running.pop()
            if last is not request:
                assert self.cache is not None
                self.running[row] = last
                written = min(self.cache.size, len(last.text) + last.options.draft_tokens)  # guesses not judged yet
                self.cache.copy_row(row, self.cache.view(len(self.running), 1), written)
        request.text.forget()
        request.reply.text = text_of(self.tokenizer, request.reply.tokens, request.options.stop)
        if not self.running and not self.waiting:
            self.cache, self.most_rows = None, None

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        for one in requests:
            one.error = error
            self._finish(one)

    def _grown(self, rows: int, size: int) -> KVCache:
        """The cache with room for so many rows of so many tokens; what it holds is kept."""
        old = self.cache
        if old is None or old.rows < rows or old.size < size:
            size = max(-(-size // BUCKET) * BUCKET, old.size if old else 0)
            new = self.model.decoder.new_cache(max(rows, old.rows if old else 0), size)
            for row, one in enumerate(self.running):
                assert old is not None
                new.copy_row(row, old.view(row, 1), len(one.text))
            self.cache = new
        assert self.cache is not None
        return self.cache

    def _halve(self, group: list[Request]) -> None:
        """Go on with half the rows; the youngest wait again, and are read again with what they said so far."""
        self.most_rows = len({*self.running, *group}) // 2
        self.prefiller.clear()
        said = [one for one in self.running if one not in group]  # a group that has just joined lies behind them
        self.running, stopped = said[: self.most_rows], said[self.most_rows :]
        back = stopped + [one for one in group if one not in self.waiting]
        self.waiting.extendleft(reversed(back))
        old, self.cache = self.cache, None
        if self.running and old is not None:
            self.cache = old.view(0, len(self.running)).clone()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _too_large(one: Request) -> Exception:
    return MemoryError(
        f"{one.text.prompt.key}: {len(one.text)} tokens do not fit the memory even alone; shorten the prompt, "
        "or load the model with dtype='bfloat16'"
    )


def _not_numbers(one: Request) -> Exception:
    return FloatingPointError(
        f"{one.text.prompt.key}: the model's logits are not numbers; its weights are damaged or its training diverged"
    )
