"""Conformers of outside checkpoints, read as a recipe reads them."""

from pathlib import Path
from typing import Any

from mmgpt.config import build
from mmgpt.encoders.conformer import ConformerEncoder
from mmgpt.encoders.conformer_config import ConformerConfig
from mmgpt.encoders.pretrained.conformers import conformer_fields, conformer_weights
from mmgpt.files import check_weights


def read(folder: Path, **options: Any) -> ConformerEncoder:
    config = build(ConformerConfig, {"kind": "conformer", **conformer_fields(folder), **options}, "encoder")
    encoder = ConformerEncoder(config).eval()
    weights = conformer_weights(folder, config)
    check_weights(encoder.state_dict(), weights, str(folder), "take another")
    encoder.load_state_dict(weights)
    return encoder
