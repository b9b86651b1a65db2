"""The object behind `mmgpt.load`: chat, ask, choose, score and stream, one conversation or a list of them."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from mmgpt.arguments import several, whole
from mmgpt.checkpoints.feature_cache import cache_features as keep_features
from mmgpt.checkpoints.save_load import load_bundle, widen
from mmgpt.config import UserError, build
from mmgpt.datasets.sample import Message, Part
from mmgpt.generation.compiled_step import compiled_step
from mmgpt.generation.decode import Reply, text_of
from mmgpt.generation.embedding import Pooling, embed
from mmgpt.generation.engine import Engine
from mmgpt.generation.generate import GenerationRequest, generate
from mmgpt.generation.loglikelihood import score, windows
from mmgpt.generation.prompts import parse_prompt, truncate_conversation
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.generation.speculative import check_draft
from mmgpt.inputs.choices import without_space
from mmgpt.inputs.rendered import IGNORED, Rendered
from mmgpt.inputs.trimming import TooLong
from mmgpt.model.bundle import ModelBundle
from mmgpt.model.quantize import Quantization, pick_scheme
from mmgpt.processor import has_bf16_units, pick_device, pick_dtype, warn_of_slow_bf16

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """The likeliest of the choices; `logprobs` holds the score of each, in their order."""

    index: int
    text: str
    logprobs: list[float]

    @classmethod
    def best(cls, choices: Sequence[str], logprobs: list[float]) -> "Choice":
        """The first of those with the highest log-probability."""
        index = max(range(len(logprobs)), key=logprobs.__getitem__)
        return cls(index, choices[index], logprobs)


class Assistant:
    """A model that answers; `name` says in results which one it was; with `compile` it decodes by a compiled step."""

    def __init__(self, bundle: ModelBundle, name: str = "model", compile: bool = False) -> None:
        self.bundle, self.name = bundle, name
        self.model, self.tokenizer, self.renderer = bundle.model, bundle.tokenizer, bundle.renderer
        self.eos_token_id = bundle.tokenizer.special(bundle.renderer.template.end)
        step = compiled_step(bundle.model) if compile else None
        self.engine = Engine(bundle.model, bundle.tokenizer, self.eos_token_id, step)

    def chat(
        self,
        messages: Sequence[Any],
        *,
        batch_size: int = 32,
        each: Sequence[Mapping[str, Any]] | None = None,
        trim: bool = False,
        draft: "Assistant | None" = None,
        **options: Any,
    ) -> Any:
        """Answer a conversation, or a list of conversations.

        Args:
            messages: messages in Hugging Face chat or OpenAI spelling or as Message objects; or a list of such lists.
            batch_size: conversations at a time; the next one begins when one has ended.
            each: options of each conversation of a list, over those that all share.
            trim: leave out the oldest exchanges of a conversation that is over the context, instead of refusing it.
            draft: a small model of the same tokenizer, for `speculation="draft"`.
            **options: fields of GenerateConfig, such as max_new_tokens, temperature, num_beams or constraint.
                Conversation i draws with seed + i.
        Returns:
            A Reply, or a list of them in the order of the conversations.
        Raises:
            UserError: if a message or option is wrong, a medium cannot be used, or a prompt exceeds the context.
        """
        if not _is_many(messages):
            (reply,) = self._replies([messages], ["prompt"], batch_size, each, trim, draft, options)
            return reply
        return list(self.replies(messages, batch_size=batch_size, each=each, trim=trim, draft=draft, **options))

    def replies(
        self,
        messages: Sequence[Sequence[Any]],
        *,
        batch_size: int = 32,
        each: Sequence[Mapping[str, Any]] | None = None,
        trim: bool = False,
        draft: "Assistant | None" = None,
        **options: Any,
    ) -> Iterator[Reply]:
        """What `chat` returns for a list of conversations, one by one as they and those before them are answered."""
        keys = [f"prompt {number}" for number in range(len(messages))]
        return self._replies(messages, keys, batch_size, each, trim, draft, options)

    def _replies(
        self,
        conversations: Sequence[Sequence[Any]],
        keys: Sequence[str],
        batch_size: int,
        each: Sequence[Mapping[str, Any]] | None,
        trim: bool,
        draft: "Assistant | None",
        options: dict[str, Any],
    ) -> Iterator[Reply]:
        whole("batch_size", batch_size, least=1)
        configs = [self._options(options)] * len(conversations)
        if each is not None:
            if len(each) != len(conversations):
                raise UserError(f"{len(each)} options in each for {len(conversations)} conversations; give as many")
            configs = [self._options({**options, **own}) for own in each]
        if draft is not None:
            check_draft(self.tokenizer, draft.tokenizer)
        asked = [
            GenerationRequest(partial(self._prompt, one, key, config, trim), config, config.seed + i)
            for i, (one, key, config) in enumerate(zip(conversations, keys, configs, strict=True))
        ]
        return generate(self.engine, asked, batch_size, draft.model if draft else None)

    def _prompt(self, messages: Sequence[Any], key: str, config: GenerateConfig, trim: bool) -> Rendered:
        talk = parse_prompt(messages)
        if not trim:
            return self.renderer.prompt(talk, key)
        return truncate_conversation(self.renderer, talk, room=config.max_new_tokens, key=key).prompt

    def tokens_over_context(self, messages: Sequence[Any], room: int) -> int:
        """By how many tokens a conversation with an answer of `room` tokens is over the context; it fits below 1.

        Raises:
            UserError: if a message is wrong or a medium cannot be used.
        """
        try:
            return len(self.renderer.prompt(parse_prompt(messages)).ids) + room - self.renderer.context
        except TooLong as error:
            return error.tokens_over + room - 1

    def fingerprint(self) -> str:
        """A hash of the weights and of all settings that answers depend on."""
        return self.bundle.fingerprint()

    def embed(self, prompts: Sequence[Any], pool: Pooling = "decoder", *, batch_size: int = 32) -> Tensor:
        """A vector of length 1 for each prompt, a text, a medium or a list of both: float32 (N, D); see `embed`."""
        return embed(self.bundle, prompts, pool, batch_size=batch_size)

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
        if config.speculation == "draft":
            raise UserError("speculation: draft needs chat(..., draft=mmgpt.load(SMALL)); a stream takes lookup")
        whole = {"num_beams": config.num_beams > 1, "best_of": config.best_of > 1}
        for name, is_set in whole.items():
            if is_set:
                raise UserError(f"{name} is for whole answers, and a stream tells its own as it goes; leave it out")
        return self._pieces(self.renderer.prompt(parse_prompt(messages)), config)

    def _pieces(self, prompt: Rendered, config: GenerateConfig) -> Generator[str, None, int]:
        told = 0
        longest_stop = max((len(stop) for stop in config.stop), default=1)
        request = self.engine.submit(prompt, config)
        try:
            while not request.is_done:
                self.engine.step()
                text = text_of(self.tokenizer, request.reply.tokens, config.stop)
                whole = len(text.rstrip("\ufffd"))  # the first bytes of a character wait for the rest
                safe = whole - longest_stop + 1  # what could still begin a stop string waits
                if safe > told and not request.is_done:
                    yield text[told:safe]
                    told = safe
            text = request.result().text
            if len(text) > told:
                yield text[told:]
            return len(request.reply.tokens)
        finally:
            self.engine.cancel(request)

    def choose(
        self,
        messages: Sequence[Any],
        choices: Sequence[Any],
        *,
        normalise: bool = False,
        batch_size: int = 32,
    ) -> Any:
        """The likeliest of given answers; the prompt and its media are read once for any number of them.

        Args:
            messages: a conversation, or a list of them.
            choices: texts, scored without the white space around them; for a list of conversations one list for all, or
                a list of lists.
            normalise: divide each log-probability by its tokens (the end token counts), so that length weighs less.
            batch_size: conversations at a time.
        Returns:
            A Choice, or a list of them.
        """
        many = _is_many(messages)
        conversations = list(messages) if many else [messages]
        choices, batch_size = several("choices", choices), whole("batch_size", batch_size, least=1)
        for one in choices:
            if not isinstance(one, str | list | tuple):
                raise UserError(f"choices hold {one!r}; each is a text, or a list of texts for each conversation")
        lists = list(choices) if choices and not isinstance(choices[0], str) else [choices] * len(conversations)
        if len(lists) != len(conversations) or any(len(one) < 2 for one in lists):
            raise UserError(
                f"{len(conversations)} conversations and {len(lists)} lists of choices; give each at least two choices"
            )
        chosen: list[Choice] = []
        for at in range(0, len(conversations), batch_size):
            rows = range(at, min(at + batch_size, len(conversations)))
            texts = {i: without_space(lists[i]) for i in rows}
            rendered = [self.renderer.choices(parse_prompt(conversations[i]), texts[i], f"prompt {i}") for i in rows]
            for i, logprobs in zip(rows, self._score(rendered), strict=True):
                scores = [sum(one) / (len(one) if normalise else 1) for one in logprobs]
                chosen.append(Choice.best(lists[i], scores))
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
        heads, tails = [], []
        for before, after in zip(contexts, continuations, strict=True):
            heads.append([*self.tokenizer.begin, *self.tokenizer.encode(before)])
            tails.append([list(self.tokenizer.encode(after))])
            length = len(heads[-1]) + len(tails[-1][0])
            if length > self.renderer.context:
                raise UserError(f"{length} tokens, over the context of {self.renderer.context}; shorten the text")
        scores = [found[0] for found in self.score_ids(heads, tails)]
        return scores[0] if isinstance(context, str) else scores

    def score_texts(self, contexts: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        """Log-probabilities of the tokens of plain texts of any length, each after its context, which may be empty.

        Text and context are tokenised apart. A text without a context begins after what the tokenizer begins every
        text with; where that is nothing, its first token is not scored and has no number. A text over the model's
        context is read in windows: each but the first scores half a context of tokens, after the half before them.

        Raises:
            UserError: if contexts and texts differ in number, or a text has no token to be scored.
        """
        if len(contexts) != len(texts):
            raise UserError(f"{len(contexts)} contexts and {len(texts)} texts; give pairs")
        pairs, owners = [], []
        for number, (before, text) in enumerate(zip(contexts, texts, strict=True)):
            head = [*self.tokenizer.begin, *self.tokenizer.encode(before)]
            ids = [*head, *self.tokenizer.encode(text)]
            first = max(1, len(head))
            if first >= len(ids):
                raise UserError(f"prompt {number}: {len(ids)} tokens, none of which is scored; give a longer text")
            for window in windows(first, len(ids), self.renderer.context):
                pairs.append((_plain(ids[window.start : window.first], "score"), [ids[window.first : window.stop]]))
                owners.append(number)
        found: list[list[float]] = [[] for _ in texts]
        for owner, (logprobs,) in zip(owners, self._score(pairs), strict=True):
            found[owner] += logprobs
        return found

    def score_ids(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[float]]]:
        """Log-probabilities of the tokens of several continuations of each context, all given as token ids."""
        return self._score(
            [
                (_plain(list(head), "score"), [list(tail) for tail in tails])
                for head, tails in zip(contexts, continuations, strict=True)
            ]
        )

    def continue_ids(
        self, contexts: Sequence[Sequence[int]], each: Sequence[Mapping[str, Any]], *, batch_size: int = 32
    ) -> list[Reply]:
        """What follows each context of token ids, without a template; each with its own options, as of `chat`."""
        asked = []
        for number, (ids, own) in enumerate(zip(contexts, each, strict=True)):
            config = self._options(dict(own))
            asked.append(GenerationRequest(partial(_plain, list(ids), f"text {number}"), config, config.seed + number))
        return list(generate(self.engine, asked, batch_size))

    def _options(self, options: dict[str, Any]) -> GenerateConfig:
        return build(GenerateConfig, options, "generation options")

    def _score(self, pairs: Sequence[tuple[Rendered, list[list[int]]]]) -> list[list[list[float]]]:
        """Log-probabilities of the tokens of each continuation of each prompt."""
        with self.engine.lock:
            self.engine.prefiller.refresh()
            return score(self.engine.prefiller, [prompt for prompt, _ in pairs], [ends for _, ends in pairs])


def _plain(ids: list[int], key: str) -> Rendered:
    return Rendered(ids, [IGNORED] * len(ids), [0] * len(ids), list(range(len(ids))), [], key, "")


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
    compile: bool = False,
    cache_features: bool = False,
) -> Assistant:
    """Open a run, a checkpoint, an exported model folder, or a language model in Hugging Face layout.

    Args:
        path: the folder, or organisation/name on the hub.
        revision: a branch, tag or commit of the hub.
        device: `cpu`, `cuda`, or `auto`.
        dtype: of the weights: `float32`, `bfloat16`, or `auto` for what is stored, but float32 where the device has no
            units for bfloat16.
        verify: compute the checkpoint's golden logits again and compare.
        quantize: hold the weights of the decoder's blocks in few bits: `int8`, `int4` or `int8-dynamic`.
        compile: decode by a compiled step, which takes some seconds at the first answer and then is up to 1.6 x as
            fast for small models; for many answers.
        cache_features: keep what the encoders make of media on disk, for later calls and processes.
    Raises:
        UserError: if the folder is incomplete, damaged, its weights do not fit its config, or there is no such device.
    """
    wanted = Quantization(scheme=pick_scheme(quantize)) if quantize else None
    place = pick_device(device)
    bundle = load_bundle(path, place, verify, revision=revision, dtype=pick_dtype(dtype))
    if dtype == "bfloat16":
        warn_of_slow_bf16("dtype bfloat16", place, "load it with dtype float32, or auto")
    if dtype == "auto" and not has_bf16_units(place):
        widen(bundle.model)
    if wanted:
        bundle.quantize(wanted)
    if cache_features:
        keep_features(bundle.model, bundle.model.encoders)
    return Assistant(bundle, str(path), compile=compile)
