"""How the sources of a stage are mixed: the share of each, where it ends, and how many steps they last."""

from collections.abc import Sequence

from mmgpt.config import UserError
from mmgpt.datasets.mixture import MixtureSampler, SamplerState
from mmgpt.datasets.source import Source
from mmgpt.inputs.dataloader import StepDataset, mean_tokens
from mmgpt.inputs.render import Renderer
from mmgpt.training.recipe import StageConfig


def limits_of(stage: StageConfig, sources: Sequence[Source]) -> list[int | None]:
    """The samples that each source gives in all, None for endlessly many."""
    epochs = [item.epochs or stage.epochs for item in stage.data]
    return [times and max(1, round(times * len(source))) for times, source in zip(epochs, sources, strict=True)]  # type: ignore[misc]


def steps_of(stage: StageConfig, sources: Sequence[Source]) -> int:
    """The updates of a stage: its `steps`, or as many as its epochs last.

    Raises:
        UserError: if the sources end before the steps do.
    """
    limits = limits_of(stage, sources)
    total = sum(limit or 0 for limit in limits)
    last = max(stage.steps or 1 if item.steps is None else item.steps for item in stage.data)
    if any(item.steps for item in stage.data) and (stage.steps is None or last < stage.steps):
        raise UserError(
            f"stage {stage.name}: its sources end after {last} steps, and the stage "
            + (
                f"takes {stage.steps}; leave the steps of one source out"
                if stage.steps
                else "counts epochs; give it steps"
            )
        )
    if stage.steps is None:
        return -(-total // stage.batch_size)
    if None not in limits and stage.steps * stage.batch_size > total:
        raise UserError(
            f"stage {stage.name}: {stage.steps} steps of {stage.batch_size} samples, but its sources end after {total} "
            "samples; raise their epochs, or give the stage epochs instead of steps"
        )
    return stage.steps


def order_of(stage: StageConfig, sources: Sequence[Source], renderer: Renderer, seed: int) -> MixtureSampler:
    """The order of a stage's samples.

    A share is a weight times size ** (1 / temperature) (Arivazhagan et al. 2019, arXiv:1907.05019), in samples or in
    tokens. A stage that is measured in epochs has a temperature of 1, so that its sources end together.
    """
    limits = limits_of(stage, sources)
    weights = [item.weight for item in stage.data]
    mixture_temperature = stage.mixture_temperature or (1.0 if stage.epochs else None)
    if mixture_temperature:
        sizes = [limit or len(source) for limit, source in zip(limits, sources, strict=True)]
        weights = [weight * size ** (1 / mixture_temperature) for weight, size in zip(weights, sizes, strict=True)]
    if stage.weight_unit == "tokens" and len(sources) > 1:
        tokens = [mean_tokens(source, renderer, stage.objective) for source in sources]
        weights = [weight / mean for weight, mean in zip(weights, tokens, strict=True)]
    ends = [item.steps and item.steps * stage.batch_size for item in stage.data]
    return MixtureSampler([len(source) for source in sources], weights, seed, limits, ends)


def open_stream(
    stage: StageConfig,
    sources: Sequence[Source],
    renderer: Renderer,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    position: SamplerState | None = None,
) -> StepDataset:
    """The steps of a stage from `start` on, where the draws are at `position`, or a rank's share of them."""
    return StepDataset(
        sources,
        order_of(stage, sources, renderer, seed),
        renderer,
        objective=stage.objective,
        batch_size=stage.batch_size,
        micro_batch_tokens=stage.micro_batch_tokens,
        micro_batch_media=stage.micro_batch_media,
        pack_length=stage.pack_length,
        start=start,
        position=position,
        word_dropout=stage.word_dropout,
        rank=rank,
        world_size=world_size,
    )
