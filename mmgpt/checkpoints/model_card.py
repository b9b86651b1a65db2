"""The model card: README.md of a saved model, as the hub shows it, filled from what the run knows of itself."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import yaml
from torch import nn

from mmgpt.model.multimodal import MultimodalModel

SCORES = "## Scores\n"


def card_text(model: MultimodalModel, facts: Mapping[str, str]) -> str:
    """Front matter for the hub, the facts of the run, the parts and how to use them.

    Args:
        model: its parts are counted; the checkpoints that they began from become `base_model`.
        facts: what is known of its origin, such as recipe, seed and stages.
    """
    config = model.config
    media = [*config.encoders]
    origins = [origin for part in (config.decoder, *config.encoders.values()) if (origin := _origin(part))]
    matter = {
        "library_name": "mmgpt",
        "pipeline_tag": "any-to-any" if len(media) > 1 else f"{media[0]}-text-to-text" if media else "text-generation",
        "tags": ["mmgpt", *media],
        **({"base_model": origins} if origins else {}),
    }
    rows = [f"| {name} | {sum(p.numel() for p in part.parameters()):,} |" for name, part in _parts(model).items()]
    shown = "".join(f'mmgpt.{modality.capitalize()}("FILE"), ' for modality in media)
    lines = [
        "---",
        yaml.safe_dump(matter, sort_keys=False).strip(),
        "---",
        f"# {facts.get('recipe', 'A model')}",
        "",
        f"Reads {', '.join(['text', *media])}; answers in text. Made with mmgpt {version('mmgpt')}.",
        "",
        *(f"- **{name}:** {fact}" for name, fact in facts.items() if name != "recipe"),
        "",
        "| part | parameters |",
        "| --- | ---: |",
        *rows,
        "",
        "```python",
        "import mmgpt",
        'model = mmgpt.load("THIS_FOLDER")',
        f'print(model.ask({shown}"What is this?").text)',
        "```",
        "",
    ]
    return "\n".join(lines)


def _origin(part: object) -> str | None:
    """The hub name that a part began from; folders of the machine it was trained on are nobody else's business."""
    source = getattr(part, "pretrained", None)
    return source if source and not Path(source).exists() else None


def _parts(model: MultimodalModel) -> dict[str, nn.Module]:
    return {
        "decoder": model.decoder,
        **{f"encoders.{name}": part for name, part in model.encoders.items()},
        **{f"adapters.{name}": part for name, part in model.adapters.items()},
        **{f"heads.{name}": part for name, part in model.heads.items()},
    }


def add_scores(file: Path, scores: Mapping[str, str]) -> None:
    """Write a table of scores at the end of a card, in place of one that is there; nothing if there is no card."""
    if not file.is_file():
        return
    before = file.read_text(encoding="utf-8").partition(SCORES)[0].rstrip()
    rows = [f"| {task} | {score} |" for task, score in scores.items()]
    table = "\n".join([SCORES, "| task | score |", "| --- | ---: |", *rows, ""])
    file.write_text(f"{before}\n\n{table}", encoding="utf-8")
