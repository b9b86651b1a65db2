"""Heads on an encoder's features, to train it on pairs of a medium and its text without, or beside, the decoder's loss.

A pair is a sample's only medium of a modality with its only reply (`inputs/objectives.py` decides it). Every head gives
the sum of its loss over the pairs of a micro-batch; the training step divides by what all pairs of the step count.
Shape letters: P pairs, N features, D width of the encoder, S symbols, K distinct texts, T width of the decoder,
W width that media and texts share.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmgpt.config import Config, UserError, did_you_mean
from mmgpt.encoders.audio_config import valid_mask
from mmgpt.inputs.batch import MediaBatch
from mmgpt.inputs.rendered import TargetText
from mmgpt.inputs.trimming import TooLong

BLANK, SYMBOLS = 0, 1 + 256  # a symbol is a byte of UTF-8 plus one
ReadTexts = Callable[[Sequence[tuple[int, ...]]], Tensor]  # token ids of K texts -> the decoder's states (K, T)


class _Head(Config):
    kind: str
    modality: str

    @property
    def name(self) -> str:
        """What the head is called in the model and in logs."""
        return f"{self.modality}_{self.kind}"

    def training_pairs(self, media: MediaBatch) -> Sequence[TargetText | None]:
        """What there is to learn of each medium: the text that it forms a pair with."""
        return media.texts

    def loss_weight(self, text: str) -> int:
        """What a pair counts in the number that the loss is divided by."""
        return 1

    def pair_error(self, text: str, num_features: int) -> UserError | None:
        """Why a pair cannot be learned from, if so."""
        return None


class CTCConfig(_Head):
    """Transcripts, byte by byte, without an alignment (Graves et al. 2006, doi:10.1145/1143844.1143891)."""

    kind: Literal["ctc"]
    modality: Literal["audio"] = "audio"

    def loss_weight(self, text: str) -> int:
        """The bytes of the transcript: each weighs the same, in short and in long clips."""
        return len(text.encode())

    def pair_error(self, text: str, num_features: int) -> UserError | None:
        """TooLong where the transcript needs more frames than there are: one a byte, and a blank between equal ones."""
        symbols = text.encode()
        needed = len(symbols) + sum(a == b for a, b in pairwise(symbols))
        if needed <= num_features:
            return None
        return TooLong(
            f"ctc needs {needed} encoded frames for its transcript {text!r}, the clip gives {num_features}; "
            "lower the encoder's subsampling, or cut the transcript to what is said"
        )


class ContrastiveConfig(_Head):
    """Media and texts in one space, told apart by a sigmoid a pair (Zhai et al. 2023, arXiv:2303.15343)."""

    kind: Literal["contrastive"]
    modality: str
    width: PositiveInt = 128  # of the space


class ClassifyConfig(_Head):
    """One of `labels`, from the mean of the features."""

    kind: Literal["classify"]
    modality: str
    labels: list[str] = Field(min_length=2)

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if twice:
            raise ValueError(f"labels hold {twice[0]!r} twice; each must differ from the others")
        return self

    def pair_error(self, text: str, num_features: int) -> UserError | None:
        """A reply that is none of the labels."""
        if text in self.labels:
            return None
        return UserError(f"the reply {text!r} is not a label of {self.name}; {did_you_mean(text, self.labels)}")


class AlikeConfig(_Head):
    """Media of one class drawn together, among all that a micro-batch shows (Khosla et al. 2020, arXiv:2004.11362).

    It learns from the classes that episodes give their media, and needs no reply: it is an auxiliary alone.
    """

    kind: Literal["alike"]
    modality: str
    width: PositiveInt = 128  # of the space
    temperature: PositiveFloat = 0.1

    def training_pairs(self, media: MediaBatch) -> Sequence[TargetText | None]:
        """The class of each medium that another one shares."""
        counts = Counter(media.groups)
        return [TargetText(group, ()) if group and counts[group] > 1 else None for group in media.groups]


HeadConfig = Annotated[CTCConfig | ContrastiveConfig | ClassifyConfig | AlikeConfig, Field(discriminator="kind")]


class CTCHead(nn.Module):
    """See CTCConfig."""

    def __init__(self, config: CTCConfig, *, width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.output = nn.Linear(width, SYMBOLS)

    def forward(self, features_PND: Tensor, counts_P: Tensor, texts: Sequence[TargetText], read: ReadTexts) -> Tensor:
        """Summed negative log-likelihood of the transcripts in nats, over all ways to spread them over the frames."""
        targets = [torch.tensor(list(one.text.encode())) + 1 for one in texts]
        lengths_P = torch.tensor([len(target) for target in targets], device=counts_P.device)
        logprobs_NPS = self.output(features_PND).float().log_softmax(dim=-1).transpose(0, 1)
        padded = pad_sequence(targets, batch_first=True).to(counts_P.device)
        return F.ctc_loss(logprobs_NPS, padded, counts_P, lengths_P, blank=BLANK, reduction="sum")

    @torch.no_grad()
    def transcribe(self, features_PND: Tensor, counts_P: Tensor) -> list[str]:
        """The likeliest symbol of each frame, repeats joined and blanks dropped; what is not UTF-8 becomes U+FFFD."""
        best_PN = self.output(features_PND).argmax(dim=-1).cpu()
        written = []
        for best_N, count in zip(best_PN, counts_P.tolist(), strict=True):
            symbols = best_N[:count].unique_consecutive().tolist()
            written.append(bytes(symbol - 1 for symbol in symbols if symbol != BLANK).decode(errors="replace"))
        return written


class ContrastiveHead(nn.Module):
    """See ContrastiveConfig; scale and bias begin as in the paper, where negatives outnumber positives by far."""

    def __init__(self, config: ContrastiveConfig, *, width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.from_media = nn.Linear(width, config.width)
        self.from_text = nn.Linear(text_width, config.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, features_PND: Tensor, counts_P: Tensor, texts: Sequence[TargetText], read: ReadTexts) -> Tensor:
        """Summed sigmoid loss of every medium against every distinct text, those of its micro-batch.

        Equal texts are one: a medium matches that one and no other, so that two clips of one word are no negatives.
        """
        columns = {text: number for number, text in enumerate(dict.fromkeys(one.text for one in texts))}
        distinct = {one.text: one.ids for one in texts}
        texts_KW = self.embed_texts(read([distinct[text] for text in columns]))
        media_PW = self.embed_media(features_PND, counts_P)
        matches_P = torch.tensor([columns[one.text] for one in texts], device=media_PW.device)
        with torch.autocast(media_PW.device.type, enabled=False):
            logits_PK = media_PW @ texts_KW.T * self.log_scale.exp() + self.bias
            signs_PK = 2.0 * F.one_hot(matches_P, len(columns)) - 1.0
            return -F.logsigmoid(signs_PK * logits_PK).sum()

    def embed_media(self, features_PND: Tensor, counts_P: Tensor) -> Tensor:
        """Media (P, W) of length 1 in the shared space, in float32."""
        return F.normalize(self.from_media(mean_of_real(features_PND, counts_P)).float(), dim=-1)

    def embed_texts(self, states_KT: Tensor) -> Tensor:
        """Texts (K, W) of length 1 in the shared space, in float32."""
        return F.normalize(self.from_text(states_KT).float(), dim=-1)


class ClassifyHead(nn.Module):
    """See ClassifyConfig."""

    def __init__(self, config: ClassifyConfig, *, width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.output = nn.Linear(width, len(config.labels))

    def forward(self, features_PND: Tensor, counts_P: Tensor, texts: Sequence[TargetText], read: ReadTexts) -> Tensor:
        """Summed cross-entropy in nats."""
        labels_P = torch.tensor([self.config.labels.index(one.text) for one in texts], device=counts_P.device)
        return F.cross_entropy(self.logits(features_PND, counts_P), labels_P, reduction="sum")

    def logits(self, features_PND: Tensor, counts_P: Tensor) -> Tensor:
        """Logits (P, labels) in float32, in the order of the config's labels."""
        logits: Tensor = self.output(mean_of_real(features_PND, counts_P))
        return logits.float()


class SupConHead(nn.Module):
    """See AlikeConfig."""

    def __init__(self, config: AlikeConfig, *, width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.output = nn.Linear(width, config.width)

    def forward(self, features_PND: Tensor, counts_P: Tensor, texts: Sequence[TargetText], read: ReadTexts) -> Tensor:
        """Summed over the media: nats to find one of its own class among all others, on average over that class."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(one.text for one in texts))}
        classes_P = torch.tensor([numbers[one.text] for one in texts], device=features_PND.device)
        itself_PP = torch.eye(len(texts), dtype=torch.bool, device=features_PND.device)
        is_alike_PP = (classes_P[:, None] == classes_P) & ~itself_PP
        with torch.autocast(features_PND.device.type, enabled=False):
            media_PW = self.embed_media(features_PND, counts_P)
            logits_PP = (media_PW @ media_PW.T / self.config.temperature).masked_fill(itself_PP, -torch.inf)
            nats_PP = -logits_PP.log_softmax(dim=-1).masked_fill(~is_alike_PP, 0.0)
            return (nats_PP.sum(dim=-1) / is_alike_PP.sum(dim=-1)).sum()

    def embed_media(self, features_PND: Tensor, counts_P: Tensor) -> Tensor:
        """Media (P, W) of length 1, near those of their class."""
        return F.normalize(self.output(mean_of_real(features_PND.float(), counts_P)), dim=-1)


def mean_of_real(features_PND: Tensor, counts_P: Tensor) -> Tensor:
    """The mean (P, D) of each medium's features, padding left out."""
    real_PN1 = valid_mask(counts_P, features_PND.shape[1])[..., None]
    return (features_PND * real_PN1).sum(dim=1) / counts_P[:, None]


HEADS: dict[str, Any] = {
    "ctc": CTCHead,
    "contrastive": ContrastiveHead,
    "classify": ClassifyHead,
    "alike": SupConHead,
}
