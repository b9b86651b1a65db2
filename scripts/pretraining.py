"""Does training an encoder by a head first lower the steps to a fixed score? One JSON line an arm.

python scripts/pretraining.py speech --data-root ../shared/data    ctc; exact match on FSDD's official test split
python scripts/pretraining.py emoji --data-root ../shared/data     contrastive; recall among all names held out

The arms share recipe, seed, data order and evaluation: `scratch` is the recipe's last stage alone, `pretrained` all of
its stages, `auxiliary` the last stage with the head's loss added. Steps are those of the last stage; `total` adds the
ones before it, and seconds are those of training, from the log. A name's rank is that of its mean log-probability as
the answer to the picture, the same for all arms.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from mmgpt.config import build
from mmgpt.datasets.readers.registry import open_source
from mmgpt.evaluation.metrics import recall_at_k
from mmgpt.evaluation.run import evaluate
from mmgpt.evaluation.tasks.task import load_task
from mmgpt.generation.assistant import Assistant, load
from mmgpt.run_log import read_log
from mmgpt.training.loop import train
from mmgpt.training.recipe import Recipe, StageConfig, load_recipe
from mmgpt.training.train_state import checkpoint_steps

KEPT = 10_000  # checkpoints: all of them


def digits_written_right(assistant: Assistant, data_root: Path) -> float:
    """Exact match on the official test split."""
    return evaluate(assistant, ["fsdd"], data_root=data_root).value("fsdd")


def names_among_five(assistant: Assistant, data_root: Path) -> float:
    """Recall@5 of the names of held-out pictures among the names of all of them."""
    source = open_source(load_task("noto_emoji").data, data_root)
    samples = [source[index] for index in range(len(source))]
    names = [sample.messages[-1].text for sample in samples]
    choices = assistant.choose([sample.messages[:-1] for sample in samples], names, normalise=True, batch_size=4)
    return recall_at_k(torch.tensor([one.logprobs for one in choices]), torch.eye(len(names)).bool(), 5)


class Experiment(NamedTuple):
    """A recipe whose first stage trains a head, and how a checkpoint of the last one is scored."""

    recipe: str
    metric: str
    score: Callable[[Assistant, Path], float]
    threshold: float


EXPERIMENTS = {
    "speech": Experiment("real/speech_ctc", "exact_match", digits_written_right, 0.95),
    "emoji": Experiment("real/emoji_contrastive", "recall@5", names_among_five, 0.15),
}


def stages_of(recipe: Recipe, arm: str, weight: float) -> list[StageConfig]:
    """The stages of an arm."""
    first, last = recipe.stages
    changed = last.model_copy(update={"auxiliary": {first.objective: weight}})
    return {"scratch": [last], "pretrained": [first, last], "auxiliary": [changed]}[arm]


def arm_recipe(recipe: Recipe, arm: str, every: int, weight: float) -> Recipe:
    """The recipe of an arm, with all the checkpoints that will be scored."""
    stages = stages_of(recipe, arm, weight)
    stages[-1] = stages[-1].model_copy(update={"save_every": every, "log_every": every, "keep_last": KEPT})
    tree = recipe.model_dump() | {"name": f"{recipe.name}_{arm}", "tasks": []}
    return build(Recipe, tree | {"stages": [stage.model_dump() for stage in stages]}, recipe.name)


def run_arm(experiment: Experiment, recipe: Recipe, options: argparse.Namespace) -> Mapping[str, object]:
    """Train an arm, or take it where it was left, and score its checkpoints."""
    folder = options.out / f"{recipe.name}_{recipe.seed}"
    train(recipe, out=folder, data_root=options.data_root, device=options.device)
    last = recipe.stages[-1]
    curve = []
    for step in checkpoint_steps(folder / last.name):
        assistant = load(folder / last.name / f"checkpoint-{step}", device=options.device)
        curve.append((step, round(experiment.score(assistant, options.data_root), 4)))
    before = sum(stage.steps for stage in recipe.stages[:-1])
    reached = next((step for step, score in curve if score >= options.threshold), None)
    log = [record for record in read_log(folder / "log.jsonl") if "seconds" in record]
    passed = [record["seconds"] for record in log if record["stage"] != last.name or record["step"] <= (reached or 0)]
    return {
        "metric": experiment.metric,
        "threshold": options.threshold,
        "steps_to_threshold": reached,
        "total": None if reached is None else before + reached,
        "seconds_to_threshold": None if reached is None else round(sum(passed), 1),
        "steps_before": before,
        "curve": curve,
        "seconds": round(sum(record["seconds"] for record in log), 1),
        "seed": recipe.seed,
    }


def main() -> None:
    """Run the arms named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--arms", default="scratch,pretrained,auxiliary")
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--every", type=int, default=50, help="steps between two scores")
    parser.add_argument("--threshold", type=float, help="the score whose steps are counted")
    parser.add_argument("--weight", type=float, default=0.3, help="of the head's loss in the arm auxiliary")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    options = parser.parse_args()
    experiment = EXPERIMENTS[options.experiment]
    options.threshold = experiment.threshold if options.threshold is None else options.threshold
    recipe = load_recipe(experiment.recipe, options.set)
    for arm in options.arms.split(","):
        found = run_arm(experiment, arm_recipe(recipe, arm, options.every, options.weight), options)
        print(json.dumps({"experiment": options.experiment, "arm": arm, **found}), flush=True)


if __name__ == "__main__":
    main()
