"""The object behind `mmgpt.load`: chat, ask, choose, score and stream, one conversation or a list of them."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmgpt.config import UserError, build
from mmgpt.datasets.sample import Message, Part
from mmgpt.generation.addresses import read_prompt
from mmgpt.generation.decode import Reply, cut_at, decode, generate
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.inputs.batch import collate
from mmgpt.inputs.chat import IGNORED, Rendered
from mmgpt.model.bundle import Bundle
from mmgpt.model.quantize import Quantization, pick_scheme
from mmgpt.model.weights import load_bundle, pick_device, pick_dtype

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """The likeliest of the choices; `logprobs` holds the score of each, in their order."""

    index: int
    text: str
    logprobs: list[float]


class Assistant:
    """A model that answers; `name` says in results which one it was."""

    def __init__(self, bundle: Bundle, name: str = "model") -> None:
        self.bundle, self.name = bundle, name
        self.model, self.tokenizer, self.renderer = bundle.model, bundle.tokenizer, bundle.renderer
        self.end = bundle.tokenizer.special(bundle.renderer.template.end)

    def chat(self, messages: Sequence[Any], *, batch_size: int = 32, **options: Any) -> Any:
        """Answer a conversation, or a list of conversations.

        Args:
            messages: messages in Hugging Face chat or OpenAI spelling or as Message objects; or a list of such lists.
            batch_size: conversations at a time.
            **options: fields of GenerateConfig: max_new_tokens, temperature, top_k, top_p, stop, seed.
        Returns:
            A Reply, or a list of them in the order of the conversations.
        Raises:
            UserError: if a message or option is wrong, a medium cannot be used, or a prompt exceeds the context.
        """
        config = self._options(options)
        if not _is_many(messages):
            return self._answer([self.renderer.prompt(read_prompt(messages))], config)[0]
        replies: list[Reply] = []
        for at in range(0, len(messages), batch_size):
            chunk = [
                self.renderer.prompt(read_prompt(one), f"prompt {at + i}")
                for i, one in enumerate(messages[at : at + batch_size])
            ]
            replies += self._answer(chunk, config.model_copy(update={"seed": config.seed + at}))
        return replies

    def ask(self, *parts: Part | str | Sequence[Part | str], **options: Any) -> Any:
        """Answer one user turn of media and text: `ask(mmgpt.Image("a.png"), "What is this?")`.

        Lists of parts are several questions: `ask([image, "What?"], [image, "Where?"])` returns a list.
        """
        if not parts:
            raise UserError("the prompt is empty; ask needs a text or a medium")
        if all(isinstance(part, list | tuple) for part in parts):
            return self.chat([(Message.of("user", *one),) for one in parts], **options)  # type: ignore[misc]
        return self.chat([Message.of("user", *parts)], **options)  # type: ignore[arg-type]

    def stream(self, messages: Sequence[Any], **options: Any) -> Generator[str, None, int]:
        """The answer to one conversation, piece by piece as it is decoded; together they are `chat(...).text`.

        Returns (to `yield from`, or as the value of StopIteration) the number of tokens decoded.
        """
        config = self._options(options)
        prompt = self.renderer.prompt(read_prompt(messages))
        self.model.eval()
        return self._pieces(prompt, config)

    def _pieces(self, prompt: Rendered, config: GenerateConfig) -> Generator[str, None, int]:
        ids: list[int] = []
        told = 0
        finished: set[int] = set()
        longest_stop = max((len(stop) for stop in config.stop), default=1)
        text = ""
        for token in decode(self.model, [prompt], config, finished, self.end, self.tokenizer):
            ids.append(token.id)
            text = self.tokenizer.decode(ids)
            cut = cut_at(text, config.stop)
            if cut is not None:
                finished.add(0)
                text = text[:cut]
                continue
            whole = len(text.rstrip("\ufffd"))  # the first bytes of a character wait for the rest
            safe = whole - longest_stop + 1  # what could still begin a stop string waits
            if safe > told:
                yield text[told:safe]
                told = safe
        if len(text) > told:
            yield text[told:]
        return len(ids)

    def choose(
        self,
        messages: Sequence[Any],
        choices: Sequence[Any],
        *,
        normalise: bool = False,
        batch_size: int = 32,
    ) -> Any:
        """The likeliest of given answers, all scored in one pass that reads the prompt and its media once.

        Args:
            messages: a conversation, or a list of them.
            choices: texts; for a list of conversations one list for all, or a list of lists.
            normalise: divide each log-probability by its tokens (the end token counts), so that length weighs less.
            batch_size: conversations at a time.
        Returns:
            A Choice, or a list of them.
        """
        many = _is_many(messages)
        conversations = list(messages) if many else [messages]
        lists = list(choices) if choices and not isinstance(choices[0], str) else [choices] * len(conversations)
        if len(lists) != len(conversations) or any(len(one) < 2 for one in lists):
            raise UserError(
                f"{len(conversations)} conversations and {len(lists)} lists of choices; give each at least two choices"
            )
        chosen: list[Choice] = []
        for at in range(0, len(conversations), batch_size):
            rows = range(at, min(at + batch_size, len(conversations)))
            rendered = [
                self.renderer.choices(read_prompt(conversations[i]), list(lists[i]), f"prompt {i}") for i in rows
            ]
            for i, logprobs in zip(rows, self._branch_logprobs(rendered), strict=True):
                scores = [sum(one) / (len(one) if normalise else 1) for one in logprobs]
                best = max(range(len(scores)), key=scores.__getitem__)
                chosen.append(Choice(best, lists[i][best], scores))
        return chosen if many else chosen[0]

    def score(self, context: str | Sequence[str], continuation: str | Sequence[str]) -> Any:
        """Log-probabilities of the tokens of `continuation` after `context`: plain strings, no template."""
        if isinstance(context, str) != isinstance(continuation, str) or len(context) == 0:
            raise UserError("score takes two strings, or two lists of strings; the context may not be empty")
        contexts = [context] if isinstance(context, str) else list(context)
        continuations = [continuation] if isinstance(continuation, str) else list(continuation)
        if len(contexts) != len(continuations) or not all(contexts) or not all(continuations):
            raise UserError(
                f"{len(contexts)} contexts and {len(continuations)} continuations; give pairs, none of them empty"
            )
        scores = []
        for before, after in zip(contexts, continuations, strict=True):
            head, tail = (*self.tokenizer.begin, *self.tokenizer.encode(before)), self.tokenizer.encode(after)
            ids = [*head, *tail]
            if len(ids) > self.renderer.context:
                raise UserError(f"{len(ids)} tokens, over the context of {self.renderer.context}; shorten the text")
            labels = [IGNORED] * len(head) + list(tail)
            row = Rendered(ids, labels, [0] * len(ids), list(range(len(ids))), [], "score", "score")
            scores.append(self._branch_logprobs([row])[0][0])
        return scores[0] if isinstance(context, str) else scores

    def _options(self, options: dict[str, Any]) -> GenerateConfig:
        return build(GenerateConfig, options, "generation options")

    def _answer(self, prompts: list[Rendered], config: GenerateConfig) -> list[Reply]:
        self.model.eval()
        return generate(self.model, self.tokenizer, prompts, config, self.end)

    @torch.inference_mode()
    def _branch_logprobs(self, rendered: list[Rendered]) -> list[list[list[float]]]:
        """Log-probabilities of the targets, by row and by branch."""
        self.model.eval()
        batch = collate(rendered).to(self.model.device)
        logprobs = iter((-self.model(batch).nll_N).tolist())
        rows = []
        for one in rendered:
            by_branch: dict[int, list[float]] = {}
            for label, branch in zip(one.labels, one.branches, strict=True):
                if label != IGNORED:
                    by_branch.setdefault(branch, []).append(next(logprobs))
            rows.append(list(by_branch.values()))
        return rows


def _is_many(messages: Sequence[Any]) -> bool:
    """True for a list of conversations, False for one conversation (a list of messages)."""
    return isinstance(messages, list | tuple) and bool(messages) and isinstance(messages[0], list | tuple)


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    verify: bool = False,
    quantize: str | None = None,
) -> Assistant:
    """Open a run, a checkpoint, an exported model folder, or a language model in Hugging Face layout.

    Args:
        path: the folder, or organisation/name on the hub.
        revision: a branch, tag or commit of the hub.
        device: `cpu`, `cuda`, or `auto`.
        dtype: of the weights: `float32`, `bfloat16`, or `auto` for what is stored.
        verify: compute the checkpoint's golden logits again and compare.
        quantize: hold the weights of the decoder's blocks in few bits: `int8`, `int4` or `int8-dynamic`.
    Raises:
        UserError: if the folder is incomplete, damaged, its weights do not fit its config, or there is no such device.
    """
    wanted = Quantization(scheme=pick_scheme(quantize)) if quantize else None
    bundle = load_bundle(path, pick_device(device), verify, revision=revision, dtype=pick_dtype(dtype))
    if wanted:
        bundle.quantize(wanted)
    return Assistant(bundle, str(path))
