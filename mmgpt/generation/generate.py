"""From prompts and options to replies: the engine, and beams, which take rows of their own.

The engine answers greedy and sampled requests, guessed or not, and best-of-n as several requests. Beams stay apart: a
step may give several rows the beginning of one, and an answer that has ended gives way to a better one later.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from mmgpt.config import UserError
from mmgpt.generation.beam import beam_search
from mmgpt.generation.decode import Reply
from mmgpt.generation.engine import Engine
from mmgpt.generation.sampling import GenerateConfig, best_candidate, candidate_seed
from mmgpt.generation.speculative import DraftModel, Proposer
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.multimodal import MultimodalModel


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, made when its turn comes, with its options and the seed of its draws."""

    prompt: Callable[[], Rendered]
    options: GenerateConfig
    seed: int


def generate(
    engine: Engine, asked: Sequence[GenerationRequest], batch_size: int, draft: MultimodalModel | None = None
) -> Iterator[Reply]:
    """The reply to each prompt, in their order, each as soon as it and those before it are there.

    Args:
        engine: of the model.
        asked: prompts with their options.
        batch_size: answers at a time.
        draft: guesses where an option asks for `speculation: draft`.
    Raises:
        UserError: if a prompt cannot be made or answered, or there is no draft model to guess.
    """
    if draft is None and any(one.options.speculation == "draft" for one in asked):
        raise UserError("speculation: draft needs a small model; give chat(..., draft=mmgpt.load(SMALL)), or lookup")
    proposer = DraftModel(draft, engine.model) if draft else None
    for with_beams, group in groupby(asked, lambda one: one.options.num_beams > 1):
        if not with_beams:
            yield from _by_engine(engine, list(group), batch_size, proposer)
            continue
        for options, same in groupby(group, lambda one: one.options):
            alike = list(same)
            for at in range(0, len(alike), batch_size):
                yield from _by_beams(engine, alike[at : at + batch_size], options)


def _by_engine(
    engine: Engine, asked: Sequence[GenerationRequest], batch_size: int, draft: Proposer | None
) -> Iterator[Reply]:
    def requests() -> Iterator[tuple[Rendered, GenerateConfig]]:
        for one in asked:
            prompt = one.prompt()
            for candidate in range(one.options.best_of):
                yield prompt, one.options.model_copy(update={"seed": candidate_seed(one.seed, candidate)})

    replies = engine.generate(requests(), batch_size, draft)
    for one in asked:
        candidates = [next(replies) for _ in range(one.options.best_of)]
        yield candidates[best_candidate([reply.logprobs for reply in candidates])]


def _by_beams(engine: Engine, asked: Sequence[GenerationRequest], options: GenerateConfig) -> Iterator[Reply]:
    engine.model.eval()
    found = beam_search(
        engine.model,
        [one.prompt() for one in asked],
        num_beams=options.num_beams,
        length_penalty=options.length_penalty,
        max_new_tokens=options.max_new_tokens,
        eos_token_id=engine.eos_token_id,
    )
    for best, *_ in found:
        reply = Reply(tokens=list(best.tokens), logprobs=list(best.logprobs))
        reply.finish_reason = "stop" if reply.tokens[-1] == engine.eos_token_id else "length"
        reply.text = engine.tokenizer.decode(reply.tokens)
        yield reply
