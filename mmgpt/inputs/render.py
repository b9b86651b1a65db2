"""Chat templates, and the one way from a Sample to token ids, labels and media.

A conversation is a list of pieces, each supervised or not by construction; nothing is tokenised twice and compared.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from mmgpt.config import UserError
from mmgpt.datasets.media import Media, Video
from mmgpt.datasets.sample import Message, Part, Sample, Text
from mmgpt.inputs.objectives import is_document, masked, only_pairs, only_reply, paired, words_dropped
from mmgpt.inputs.rendered import (
    IGNORED,
    HeadKind,
    MediaProcessor,
    Medium,
    MediumPlaceholders,
    Objective,
    RenderContext,
    Rendered,
    TargetText,
    TokenBuilder,
)
from mmgpt.inputs.templates import ChatTemplate
from mmgpt.inputs.tokenizer import END, MASK, PLACEHOLDER_TOKENS, Tokenizer
from mmgpt.inputs.tools import Mark, Spoken, spoken
from mmgpt.inputs.trimming import TooLong, truncations
from mmgpt.inputs.video import VideoReader


@dataclass(frozen=True)
class Renderer:
    """Turns samples into token ids and media, for training and for prompts alike.

    Attributes:
        processors: of each modality that the model takes; a part of any other is refused.
        context: the most tokens a row may take.
        system: the system turn of conversations that come without one; None for none.
        media_markup: markup before and after each medium of a modality.
        video: makes pictures and a sound of a video.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    processors: Mapping[str, MediaProcessor]
    context: int
    system: str | None = None
    media_markup: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    video: VideoReader | None = None

    def render(
        self,
        sample: Sample,
        objective: Objective = "respond",
        sample_number: int | None = None,
        word_dropout: float = 0.0,
    ) -> Rendered:
        """Render a sample to learn from; `sample_number` varies what is hidden from one showing to the next.

        Training alone gives a `sample_number`, which augments the media; without one they are left as they came.

        One assistant message alone is a document: its text and an end token, without a template. A sample over
        the context loses whole branches from its end, or whole exchanges: from its start, or from its end where the
        first holds all its media; a document is cut.
        `word_dropout` is the chance of each target to be read as the mask token by the targets after it.
        Under an encoder's objective no token is a target; its head learns from the pair that the sample gives.

        Raises:
            UserError: if no token is a target, there is no pair for an encoder's objective, or a medium cannot be
                used; the message names the sample.
            TooLong: if not even one exchange fits, or a transcript does not fit its clip.
        """
        of_encoder = objective in get_args(HeadKind)
        if objective != "respond" and sample.branches:
            raise UserError(f"{sample.key}: branches are for the objective respond; use Sample.unbranched() first")
        if not sample.messages:
            raise UserError(f"{sample.key}: holds no messages; give it at least a user and an assistant turn")
        rng = random.Random(f"{sample.key}/{sample_number or 0}")
        try:
            showing = RenderContext(None if sample_number is None else rng)
            fitted = self._fit(sample, "respond" if of_encoder else objective, showing)
            rendered = self._with_pair(fitted, sample)
            if of_encoder:
                return only_pairs(rendered, objective, self.processors)
        except UserError as error:
            raise type(error)(f"{sample.key}: {error}") from None
        if all(label == IGNORED for label in rendered.labels):
            raise UserError(f"{sample.key}: no token is a target; give it an assistant turn with text to learn")
        if objective == "masked":
            return masked(rendered, self.tokenizer.special(MASK), rng)
        return words_dropped(rendered, word_dropout, self.tokenizer.special(MASK), rng) if word_dropout else rendered

    def prompt(
        self, messages: tuple[Message, ...], key: str = "prompt", showing: RenderContext | None = None
    ) -> Rendered:
        """Render a conversation up to where the assistant's reply begins; media in `showing` are not read again.

        Raises:
            UserError: if it is empty or ends with an assistant turn; TooLong: if it does not fit the context.
        """
        pieces = self._prompt_pieces(messages, showing or RenderContext())
        if len(pieces.ids) >= self.context:
            media = _heaviest(messages, pieces.showing)
            raise TooLong(
                f"{key}: {len(pieces.ids)} tokens, {len(pieces.ids) + 1 - self.context} too many for the context of "
                f"{self.context}" + (f" (heaviest media: {media})" if media else "") + "; shorten it or drop turns",
                len(pieces.ids) + 1 - self.context,
            )
        return _rendered(pieces, [], Sample(messages, key=key))

    def choices(
        self, messages: tuple[Message, ...], choices: list[str], key: str = "prompt"
    ) -> tuple[Rendered, list[list[int]]]:
        """Render a prompt, and each choice as the ids that answer it, the end token included.

        Raises:
            UserError: as of `prompt`; TooLong: if prompt and longest choice do not fit the context.
        """
        pieces = self._prompt_pieces(messages, RenderContext())
        answers = [[*self.tokenizer.encode(choice), *self._end_ids] for choice in choices]
        longest = len(pieces.ids) + max(map(len, answers))
        if longest > self.context:
            raise TooLong(f"{key}: prompt and longest choice take {longest} tokens, over the context of {self.context}")
        return _rendered(pieces, [], Sample(messages, key=key)), answers

    def parts(self, parts: Sequence[Part], key: str = "parts") -> Rendered:
        """Render parts alone, as a document begins: without a template, and with nothing after them.

        Raises:
            UserError: if there is neither text nor medium; TooLong: if they do not fit the context.
        """
        pieces = TokenBuilder()
        self._add_parts(pieces, tuple(parts), False)
        if not pieces.ids:
            raise UserError(f"{key}: is empty; give it a text or a medium")
        begun = TokenBuilder(ids=[*self.tokenizer.begin, *pieces.ids], media=pieces.media)
        if len(begun.ids) > self.context:
            raise TooLong(f"{key}: {len(begun.ids)} tokens, over the context of {self.context}; cut it into several")
        begun.labels = [IGNORED] * len(begun.ids)
        return _rendered(begun, [], Sample((), key=key))

    def _prompt_pieces(self, messages: tuple[Message, ...], showing: RenderContext) -> TokenBuilder:
        if not messages:
            raise UserError("the prompt is empty; give at least one user message")
        if messages[-1].role == "assistant":
            raise UserError("the conversation ends with an assistant turn; end it with what is to be answered")
        pieces = TokenBuilder(showing)
        turns = self._spoken(messages)
        pieces.add(self._begin(turns), False)
        self._add_turns(pieces, turns, "respond")
        pieces.add(self.tokenizer.encode_markup(self.template.turn("assistant").open), False)
        pieces.labels = [IGNORED] * len(pieces.ids)  # earlier replies are not to be scored
        return pieces

    def _fit(self, sample: Sample, objective: Objective, showing: RenderContext) -> Rendered:
        if is_document(sample):
            pieces = TokenBuilder(showing)
            pieces.add(self.tokenizer.begin, False)
            self._add_parts(pieces, sample.messages[0].parts, sample.messages[0].is_learned)
            pieces.add((self.tokenizer.special(END),), sample.messages[0].is_learned)
            pieces.labels[0] = IGNORED
            is_trimmed = len(pieces.ids) > self.context
            if is_trimmed and pieces.media:
                raise TooLong(f"{len(pieces.ids)} tokens, over the context of {self.context}, and it holds media")
            del pieces.ids[self.context :], pieces.labels[self.context :]
            return replace(_rendered(pieces, [], sample), is_trimmed=is_trimmed)
        fitted, size = self._if_it_fits(sample, sample, objective, showing)
        if fitted is not None:
            return fitted
        versions = list(truncations(sample))
        least, most = 1, len(versions)
        while least < most:  # by halves, for each is rendered
            at = (least + most) // 2
            shorter, size = self._if_it_fits(versions[at], sample, objective, showing)
            fitted, least, most = (fitted, at + 1, most) if shorter is None else (shorter, least, at)
        if fitted is None:
            raise TooLong(f"{size} tokens in one exchange alone, over the context of {self.context}; raise it")
        return fitted

    def _if_it_fits(
        self, shown: Sample, sample: Sample, objective: Objective, showing: RenderContext
    ) -> tuple[Rendered | None, int]:
        """What is shown of a sample, rendered, or None where it is over the context; and its tokens."""
        context, branches = self._conversation(shown, objective, showing)
        size = len(context.ids) + sum(len(branch.ids) for branch in branches)
        if size > self.context:
            return None, size
        return replace(_rendered(context, branches, sample), is_trimmed=shown is not sample), size

    def _conversation(
        self, sample: Sample, objective: Objective, showing: RenderContext
    ) -> tuple[TokenBuilder, list[TokenBuilder]]:
        context, shared = TokenBuilder(showing), self._spoken(sample.messages)
        context.add(self._begin(shared), objective != "respond")
        if not sample.branches:
            self._add_turns(context, shared, objective)
            context.labels[0] = IGNORED
            return context, []
        self._add_turns(context, shared, objective, close=False)
        context.labels = [IGNORED] * len(context.labels)
        branches = []
        for turns in sample.branches:
            branch = TokenBuilder(showing)
            if turns[0].role == sample.messages[-1].role:
                self._add_turns(branch, self._spoken(turns), objective, reopen=False)
            else:
                self._close(branch, shared[-1], objective)
                self._add_turns(branch, self._spoken(turns), objective)
            branch.labels[0] = IGNORED
            branches.append(branch)
        return context, branches

    def _add_turns(
        self,
        out: TokenBuilder,
        turns: Sequence[Spoken],
        objective: Objective,
        *,
        reopen: bool = True,
        close: bool = True,
    ) -> None:
        """Add turns; the first may go on with a turn already open, the last may be left open."""
        for number, turn in enumerate(turns):
            everything = objective != "respond" and turn.is_learned
            if number or reopen:
                out.add(self.tokenizer.encode_markup(self.template.turn(turn.role).open), everything)
            self._add_parts(out, turn.parts, everything or _is_target(turn))
            if close or number + 1 < len(turns):
                self._close(out, turn, objective)

    def _spoken(self, messages: tuple[Message, ...]) -> tuple[Spoken, ...]:
        return spoken(messages, self.template.tools, self.system)

    def _begin(self, turns: Sequence[Spoken]) -> tuple[int, ...]:
        """What stands before the first turn, the system turn included that all conversations get."""
        begin = self.template.begin
        ids = self.tokenizer.begin if begin is None else self.tokenizer.encode_markup(begin)
        if self.system is None or turns[0].role == "system":
            return ids
        pieces = TokenBuilder()
        self._add_turns(pieces, (Spoken("system", (Text(self.system),)),), "respond")
        return (*ids, *pieces.ids)

    def _close(self, out: TokenBuilder, said: Spoken, objective: Objective) -> None:
        turn, everything = self.template.turn(said.role), objective != "respond" and said.is_learned
        out.add(self.tokenizer.encode_markup(turn.end), everything or _is_target(said))
        out.add(self.tokenizer.encode_markup(turn.after), everything)

    def _add_parts(self, out: TokenBuilder, parts: Sequence[Part | Mark], is_target: bool) -> None:
        for part in parts:
            if isinstance(part, Mark):
                out.add(self.tokenizer.encode_markup(part.text), is_target)
                continue
            if isinstance(part, Text):
                out.add(self.tokenizer.encode(part.text), is_target)
                continue
            prepared = out.showing.prepared
            if part not in prepared:
                prepared[part] = self._prepare(part, out.showing.rng)
            for piece in prepared[part]:
                if isinstance(piece, MediumPlaceholders):
                    out.add_medium(piece)
                else:
                    out.add(piece, False)

    def _prepare(self, part: Media, rng: random.Random | None) -> list[tuple[int, ...] | MediumPlaceholders]:
        if isinstance(part, Video) and self.processors and self.video:
            seed = rng.getrandbits(64) if rng else None  # the frames of a showing are augmented alike
            pieces: list[tuple[int, ...] | MediumPlaceholders] = []
            for one in self.video(part):
                if isinstance(one, Text):
                    pieces.append(self.tokenizer.encode(one.text))
                else:
                    pieces += self._prepare(one, random.Random(seed) if rng else None)
            return pieces
        if part.modality not in self.processors:
            known = ", ".join(["text", *self.processors, *(["video"] if self.processors and self.video else [])])
            raise UserError(f"{part.name()}: this model has no {part.modality} encoder; it takes {known}: leave it out")
        processor = self.processors[part.modality]
        values = processor.preprocess(part, rng)
        count = processor.num_tokens(tuple(values.shape))
        medium = Medium(part.modality, values, count, part.name(), group=part.group)
        before, after = map(self.tokenizer.encode_markup, self.media_markup.get(part.modality, ("", "")))
        return [MediumPlaceholders(medium, self.tokenizer.special(PLACEHOLDER_TOKENS[part.modality]), before, after)]

    def _with_pair(self, rendered: Rendered, sample: Sample) -> Rendered:
        text = only_reply(sample)
        if not text.strip():
            return rendered
        return paired(rendered, TargetText(text, self.tokenizer.encode(text) + self._end_ids))

    @property
    def _end_ids(self) -> tuple[int, ...]:
        return self.tokenizer.encode_markup(self.template.end)


def _is_target(turn: Spoken) -> bool:
    """Whether a turn is learned by a model that learns to respond."""
    return turn.role == "assistant" and turn.is_learned


def _heaviest(messages: Sequence[Message], showing: RenderContext) -> str:
    """The three media of a prompt that take most tokens: a video with all its frames."""
    media = [part for message in messages for part in message.parts if isinstance(part, Media)]
    taken = [
        (part.name(), sum(p.medium.num_tokens for p in showing.prepared[part] if isinstance(p, MediumPlaceholders)))
        for part in media
    ]
    return ", ".join(f"{name} {count}" for name, count in sorted(taken, key=lambda one: -one[1])[:3])


def _rendered(context: TokenBuilder, branches: list[TokenBuilder], sample: Sample) -> Rendered:
    ids, labels, media = list(context.ids), list(context.labels), list(context.media)
    numbers, positions = [0] * len(ids), list(range(len(ids)))
    for number, branch in enumerate(branches, start=1):
        ids += branch.ids
        labels += branch.labels
        media += branch.media
        numbers += [number] * len(branch.ids)
        positions += range(len(context.ids), len(context.ids) + len(branch.ids))
    return Rendered(ids, labels, numbers, positions, media, sample.key, sample.source)
