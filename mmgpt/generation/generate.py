"""From prompts and options to replies: the engine, and the ways of decoding that take rows of their own.

The engine answers greedy and sampled requests, best-of-n as several requests; beams and speculation run in batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from mmgpt.config import UserError
from mmgpt.generation.beam import beam_search
from mmgpt.generation.decode import Reply, cut_at, text_of
from mmgpt.generation.engine import Engine
from mmgpt.generation.sampling import GenerateConfig, best_candidate, candidate_seed, make_sampler
from mmgpt.generation.speculative import DraftModel, PromptLookup, Proposer, speculate
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
    for (beams, speculation), group in groupby(asked, lambda one: (one.options.num_beams > 1, one.options.speculation)):
        alike = list(group)
        if not beams and not speculation:
            yield from _by_engine(engine, alike, batch_size)
            continue
        for options, same in groupby(alike, lambda one: one.options):
            many = list(same)
            for at in range(0, len(many), batch_size):
                chunk = many[at : at + batch_size]
                by = _by_beams if beams else _by_guesses
                yield from by(engine, chunk, options, draft)


def _by_engine(engine: Engine, asked: Sequence[GenerationRequest], batch_size: int) -> Iterator[Reply]:
    def requests() -> Iterator[tuple[Rendered, GenerateConfig]]:
        for one in asked:
            prompt = one.prompt()
            for candidate in range(one.options.best_of):
                yield prompt, one.options.model_copy(update={"seed": candidate_seed(one.seed, candidate)})

    replies = engine.generate(requests(), batch_size, numbered=False)
    for one in asked:
        candidates = [next(replies) for _ in range(one.options.best_of)]
        yield candidates[best_candidate([reply.logprobs for reply in candidates])]


def _by_beams(
    engine: Engine, asked: Sequence[GenerationRequest], options: GenerateConfig, draft: MultimodalModel | None
) -> Iterator[Reply]:
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


def _by_guesses(
    engine: Engine, asked: Sequence[GenerationRequest], options: GenerateConfig, draft: MultimodalModel | None
) -> Iterator[Reply]:
    engine.model.eval()
    prompts = [one.prompt() for one in asked]
    samplers = [
        make_sampler(options, engine.tokenizer, one.seed, prompt.ids, engine.eos_token_id)
        for one, prompt in zip(asked, prompts, strict=True)
    ]
    proposer: Proposer = PromptLookup()
    if options.speculation == "draft":
        assert draft is not None  # `generate` has looked
        draft.eval()
        proposer = DraftModel(draft, engine.model, prompts, options.max_new_tokens + options.draft_tokens)
    replies, finished = [Reply() for _ in asked], set[int]()
    limits = {"max_new_tokens": options.max_new_tokens, "draft_tokens": options.draft_tokens}
    for token in speculate(engine.model, prompts, samplers, proposer, finished, engine.eos_token_id, **limits):
        reply = replies[token.row]
        reply.tokens.append(token.id)
        reply.logprobs.append(token.logprob)
        if token.id == engine.eos_token_id:
            reply.finish_reason = "stop"
        elif options.stop and cut_at(engine.tokenizer.decode(reply.tokens), options.stop) is not None:
            reply.finish_reason = "stop"
            finished.add(token.row)
    for reply in replies:
        reply.text = text_of(engine.tokenizer, reply.tokens, options.stop)
        yield reply
