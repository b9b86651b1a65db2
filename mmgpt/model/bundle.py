"""All that answering takes, in one object: model, tokenizer, template."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from mmgpt.config import UserError
from mmgpt.datasets.media import LIMITS, Limits
from mmgpt.inputs.render import Renderer
from mmgpt.inputs.templates import TEMPLATES
from mmgpt.inputs.tokenizer import PLACEHOLDER_TOKENS, Tokenizer
from mmgpt.model.config import ModelConfig
from mmgpt.model.multimodal import MultimodalModel
from mmgpt.model.quantize import Quantization, quantize_model


@dataclass
class ModelBundle:
    """All that answering takes.

    Attributes:
        template: a name among TEMPLATES.
        card: what is known of the model's origin.
        limits: a recipe's, for its training; they are not saved, and prompts are held to the defaults.
        system: the system turn of conversations that come without one.
        media_markup: markup before and after each medium of a modality.
        new_tokens: ids that were added to the tokenizer of the decoder's checkpoint.
        quantization: of the model's weights, which then answer but do not learn.
    """

    model: MultimodalModel
    tokenizer: Tokenizer
    template: str
    card: dict[str, str] = field(default_factory=dict)
    limits: Limits = LIMITS
    system: str | None = None
    media_markup: dict[str, tuple[str, str]] = field(default_factory=dict)
    new_tokens: tuple[int, ...] = ()
    quantization: Quantization | None = None

    def quantize(self, quantization: Quantization) -> None:
        """Hold the weights of some layers in few bits from now on.

        Raises:
            UserError: if some are already, or a layer or the device does not suit the scheme.
        """
        if self.quantization:
            raise UserError(
                f"quantize {quantization.scheme}: the weights are {self.quantization.scheme} already; "
                "take the model they were quantised from"
            )
        quantize_model(self.model, quantization)
        self.quantization = quantization

    def fingerprint(self) -> str:
        """A hash of the weights and of all settings that answers depend on, the same wherever they are stored."""
        settings = [self.template, self.system, sorted(self.media_markup.items()), str(self.quantization)]
        described = json.dumps([self.model.config.model_dump(mode="json"), settings, self.tokenizer.core.to_str()])
        found = hashlib.sha256(described.encode())
        for name, weight in sorted(self.model.state_dict().items()):
            found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    @property
    def renderer(self) -> Renderer:
        """Renders prompts and samples for this model."""
        config = self.model.config
        return make_renderer(config, self.tokenizer, self.template, self.system, self.media_markup, self.limits)


def make_renderer(
    config: ModelConfig,
    tokenizer: Tokenizer,
    template: str,
    system: str | None,
    media_markup: Mapping[str, tuple[str, str]],
    limits: Limits,
) -> Renderer:
    """What renders for a model of this config, in the form of a template of TEMPLATES, media within their limits."""
    processors, video = config.media_processors(limits), config.video_reader(limits)
    return Renderer(tokenizer, TEMPLATES[template], processors, config.decoder.context, system, media_markup, video)


def new_bundle(config: ModelConfig, tokenizer: Tokenizer, template: str, rows: int | None = None) -> ModelBundle:
    """A bundle with random weights; `rows` of the embedding are the tokens if not given."""
    slots = {modality: tokenizer.special(PLACEHOLDER_TOKENS[modality]) for modality in config.encoders}
    return ModelBundle(MultimodalModel(config, rows or len(tokenizer), slots), tokenizer, template)
