"""Recipes: one YAML is one run. Stages differ in data, in what trains and how fast, never in code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mmgpt.checkpoints.pretrained_parts import chat_of, fill_from_checkpoint
from mmgpt.config import Config, Seed, UserError, apply_overrides, build, did_you_mean, find_config, read_yaml
from mmgpt.datasets.media import LIMITS, Limits
from mmgpt.datasets.readers.registry import AnySource
from mmgpt.inputs.rendered import AuxiliaryKind, HeadKind, Objective
from mmgpt.inputs.templates import TemplateName
from mmgpt.inputs.tokenizer import PLACEHOLDER_TOKENS, TokenizerConfig
from mmgpt.model.config import ModelConfig
from mmgpt.training.distill import DistillConfig
from mmgpt.training.lora import LoraConfig


class OptimizerConfig(Config):
    """What turns gradients into updates."""

    kind: Literal["adamw", "sgd", "muon"] = "adamw"  # muon: for the matrices of blocks and adapters, AdamW for the rest
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.0  # of matrices; norms, biases and embeddings never decay
    momentum: NonNegativeFloat = 0.95  # of sgd and muon
    muon_learning_rate: PositiveFloat = 0.02  # of a matrix, where the stage's learning_rate is AdamW's
    muon_interval: PositiveInt = 1  # steps between two updates of a matrix, which grow with it: 2 halves their cost
    muon_convolutions: bool = False  # kernels of convolutions (Conv2d) as matrices, which decay too

    @model_validator(mode="after")
    def _muon_is_used(self) -> Self:
        for name in ("muon_interval", "muon_convolutions"):
            if getattr(self, name) != type(self).model_fields[name].default and self.kind != "muon":
                raise ValueError(f"{name} is for kind=muon, this is {self.kind}; change one of the two")
        return self


class ScheduleConfig(Config):
    """The learning rate over a stage, as a share of its peak."""

    kind: Literal["cosine", "linear", "constant"] = "linear"  # linear: constant, then down over the last `decay`
    warmup: NonNegativeInt = 10  # steps
    decay: float = Field(default=0.6, ge=0, le=1)  # share of the steps
    floor: float = Field(default=0.0, ge=0, le=1)  # where it ends


class StageConfig(Config):
    """One stage of training."""

    renamed: ClassVar[Mapping[str, str]] = {
        "row_tokens": "pack_length",
        "count_by": "weight_unit",
        "temperature": "mixture_temperature",
    }
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    objective: Objective = "respond"
    auxiliary: dict[AuxiliaryKind, PositiveFloat] = {}  # losses of heads, with their weights, added to the objective's
    teacher: str | None = None  # a run, checkpoint or exported folder whose probabilities are learned beside the labels
    distill: DistillConfig = DistillConfig()  # how much the teacher counts
    train: list[str] = ["*"]  # globs over parameter names, the rest is frozen; decoder.embedding[new]: added rows alone
    lora: LoraConfig | None = None  # adapters that learn besides, merged at the end; [] in train for them alone
    data: list[AnySource] = Field(min_length=1)
    steps: PositiveInt | None = None  # updates; either these or epochs
    epochs: PositiveFloat | None = None  # times that each source is gone through
    weight_unit: Literal["samples", "tokens"] = "samples"  # what the sources' weights are shares of
    mixture_temperature: PositiveFloat | None = (
        None  # multiplies a weight by the source's size ** (1 / temperature); 1 for epochs
    )
    word_dropout: float = Field(default=0.0, ge=0, lt=1)  # share of targets that later ones read as the mask token
    batch_size: PositiveInt = 32  # samples a step, with all their branches
    micro_batch_tokens: PositiveInt = 8192  # padded tokens that pass through the model at a time
    micro_batch_media: PositiveInt | None = None  # media of one modality at a time
    pack_length: PositiveInt | None = None  # pack samples into rows of so many tokens; else rows of like lengths
    learning_rate: PositiveFloat = 3e-3
    learning_rates: dict[str, PositiveFloat] = {}  # globs with rates of their own; the last match counts
    layer_decay: float | None = Field(default=None, gt=0, le=1)  # of rates from each block to the one below
    ema: float | None = Field(default=None, gt=0, lt=1)  # end with an average of the weights that decays so a step
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: NonNegativeInt = 0  # processes that read and render
    cache_features: bool = False  # keep what frozen encoders make of media on disk: later epochs and runs skip them
    save_every: PositiveInt = 500  # steps
    keep_last: PositiveInt = 2  # checkpoints of this stage
    log_every: PositiveInt = 10  # steps
    max_skipped: float = Field(default=0.01, ge=0, le=1)  # stop when a larger share of samples could not be used

    @model_validator(mode="after")
    def _ends_somewhere(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: give one of the two")
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        if not self.train and self.lora is None:
            raise ValueError("train=[]: nothing would learn; name what trains, or give lora")
        return self

    @model_validator(mode="after")
    def _words_are_hidden_once(self) -> Self:
        if self.word_dropout and self.objective not in ("causal", "respond"):
            why = "masked hides words itself" if self.objective == "masked" else f"{self.objective} reads no replies"
            raise ValueError(f"word_dropout={self.word_dropout} is for causal and respond; {why}")
        return self

    @model_validator(mode="after")
    def _auxiliaries_add_something(self) -> Self:
        if self.objective in self.auxiliary:
            raise ValueError(f"auxiliary holds {self.objective}, which is the objective already; leave it out of one")
        return self

    @model_validator(mode="after")
    def _teachers_read_tokens(self) -> Self:
        if self.teacher and self.objective in get_args(HeadKind):
            raise ValueError(f"teacher={self.teacher}: is for objectives of tokens, this is {self.objective}")
        if not self.teacher and self.distill != DistillConfig():
            raise ValueError("distill is given and no teacher; name a teacher, or leave distill out")
        return self

    @property
    def head_weights(self) -> dict[str, float]:
        """The weight of each kind of head whose loss this stage takes."""
        own = {kind: 1.0 for kind in get_args(HeadKind) if kind == self.objective}
        return own | {str(kind): weight for kind, weight in self.auxiliary.items()}


class Recipe(Config):
    """A whole run."""

    renamed: ClassVar[Mapping[str, str]] = {"start": "init_from", "wraps": "media_markup"}
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    seed: Seed = 0
    init_from: str | None = (
        None  # a run, checkpoint or exported folder whose weights it begins with, as far as they fit
    )
    tokenizer: TokenizerConfig | None = (
        None  # that of init_from or of a pretrained decoder, else one trained on its texts
    )
    template: TemplateName | None = None  # that of init_from or of a pretrained decoder, else chatml
    system: str | None = None  # the system turn of conversations that come without one; as for template
    media_markup: dict[
        str, tuple[str, str]
    ] = {}  # markup before and after each medium of a modality; that of init_from
    model: ModelConfig
    stages: list[StageConfig] = Field(min_length=1)
    limits: Limits = LIMITS  # of the media it trains on
    tasks: list[str] = []  # evaluated for the report when the run is done

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(
                f"stages {names} must have different names; their checkpoints go to folders of those names"
            )
        return self

    @model_validator(mode="after")
    def _markup_has_media(self) -> Self:
        for modality in self.media_markup.keys() - self.model.encoders.keys():
            raise ValueError(
                f"media_markup.{modality}: the model has no such encoder; {did_you_mean(modality, PLACEHOLDER_TOKENS)}"
            )
        return self

    @model_validator(mode="after")
    def _heads_exist(self) -> Self:
        kinds = {head.kind for head in self.model.heads}
        for number, stage in enumerate(self.stages):
            for kind in stage.head_weights.keys() - kinds:
                key = "objective" if kind == stage.objective else f"auxiliary.{kind}"
                raise ValueError(
                    f"stages.{number}.{key}: stage {stage.name} learns {kind}, and the model has no such head; "
                    f"add {{kind: {kind}, modality: ...}} to model.heads"
                )
        return self

    def card(self) -> dict[str, str]:
        """What a model card tells of a run: its seed, its stages, and the data of each."""
        told = {"recipe": self.name, "seed": str(self.seed)}
        for stage in self.stages:
            length = f"{stage.steps:,} steps" if stage.steps else f"{stage.epochs:g} epochs"
            sources = ", ".join(
                dict.fromkeys(source.label or str(getattr(source, "name", source.reader)) for source in stage.data)
            )
            told[f"stage {stage.name}"] = f"{stage.objective}, {length}, trains {', '.join(stage.train)}; {sources}"
        return told


def open_recipe(recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe as it is, or read by `load_recipe`.

    Raises:
        UserError: if overrides are given to one that is made already; as of `load_recipe`.
    """
    if not isinstance(recipe, Recipe):
        return load_recipe(recipe, overrides)
    if overrides:
        raise UserError(f"overrides={overrides!r}: are for a YAML file; this is a Recipe, make it with them")
    return recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay overrides such as `stages.instruct.steps=10` over it.

    Raises:
        UserError: if the file is absent, not YAML, or does not fit the schema, or a checkpoint it names cannot be had.
    """
    tree, where = apply_overrides(read_yaml(path), overrides), str(find_config(path))
    if isinstance(tree.get("model"), dict):
        tree["model"] = fill_from_checkpoint(tree["model"], where)
        tree = {**chat_of(tree["model"]), **tree}
    return build(Recipe, tree, where)
