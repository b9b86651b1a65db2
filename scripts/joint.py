"""One joint model against models that each learned a single task: training them, and the paired test between two runs.

python scripts/joint.py alone easy_vqa --data-root DATA      the joint recipe's model and stages, with one task's data
python scripts/joint.py compare RUN OTHER                    difference of their scores on the same questions
python scripts/joint.py text RUN --data-root DATA            nats a character of tinyshakespeare's last tenth
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from mmgpt.applications.pipeline import run_recipe
from mmgpt.cli.training_display import TrainingDisplay
from mmgpt.datasets.readers.registry import TextConfig, open_source
from mmgpt.generation.assistant import Assistant, load
from mmgpt.inputs.batch import collate
from mmgpt.run_log import read_log
from mmgpt.training.recipe import Recipe, load_recipe

Record = dict[str, Any]


def alone(name: str, steps: int, seed: int) -> Recipe:
    """The joint recipe with the data of one task alone; stages that are left without data go."""
    joint = load_recipe("real/joint", [f"seed={seed}"])
    stages = []
    for stage in joint.stages:
        own = [item for item in stage.data if item.label == name]
        if own:
            stages.append(
                stage.model_copy(update={"data": own, "steps": steps if stage is joint.stages[-1] else stage.steps})
            )
    return joint.model_copy(
        update={"name": f"joint-{name}", "stages": stages, "tasks": [name] if name in joint.tasks else []}
    )


def compare(run: Path, other: Path) -> list[Record]:
    """For every task that both runs were scored on: the mean difference, its interval, and McNemar's exact test."""
    rows = []
    for file in sorted((run / "eval").glob("samples-*.jsonl")):
        theirs = {s["key"]: s for s in read_log(other / "eval" / file.name)}
        pairs = [(s, theirs[s["key"]]) for s in read_log(file) if s["key"] in theirs]
        if not pairs:
            continue
        metric = next(iter(pairs[0][0]["scores"]))
        differences = [a["scores"][metric] - b["scores"][metric] for a, b in pairs]
        count, mean = len(pairs), sum(differences) / len(pairs)
        error = math.sqrt(sum((d - mean) ** 2 for d in differences) / max(1, count - 1) / count)
        better, worse = differences.count(1.0), differences.count(-1.0)
        rows.append(
            {
                "task": file.stem.removeprefix("samples-"),
                "n": count,
                "points": round(100 * mean, 2),
                "ci95": [round(100 * (mean - 1.96 * error), 2), round(100 * (mean + 1.96 * error), 2)],
                "only_first_right": better,
                "only_second_right": worse,
                "p": sign_test(better, worse),
            }
        )
    return rows


def sign_test(better: int, worse: int) -> float:
    """Two-sided probability of so uneven a split of the questions that only one model got right (McNemar 1947)."""
    count = better + worse
    tail = sum(math.comb(count, k) for k in range(min(better, worse) + 1)) / 2**count
    return round(min(1.0, 2 * tail), 4)


@torch.inference_mode()
def text_loss(assistant: Assistant, data_root: Path, window: int = 512) -> Record:
    """Nats a character over the last tenth of tinyshakespeare, in windows that do not overlap."""
    config = TextConfig(
        reader="text", path="text/tinyshakespeare/input.txt", span=(0.9, 1.0), window=window, stride=window
    )
    source = open_source(config, data_root)
    end, nats, characters = assistant.tokenizer.special("<|end|>"), 0.0, 0
    for index in range(len(source) - 1):  # the last window overlaps the one before
        rendered = assistant.renderer.render(source[index], "causal")
        loss = assistant.model(collate([rendered], "causal").to(assistant.model.device))
        targets = [label for label in rendered.labels if label != -100]
        nats += sum(float(nll) for nll, label in zip(loss.nll_N, targets, strict=True) if label != end)
        characters += len(source[index].messages[0].text)
    return {"nats_a_character": round(nats / characters, 4), "characters": characters, "window": window}


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("alone")
    one.add_argument("task")
    one.add_argument("--steps", type=int, default=1000)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--data-root", type=Path, default=Path())
    one.add_argument("--out", type=Path)
    two = commands.add_parser("compare")
    two.add_argument("run", type=Path)
    two.add_argument("other", type=Path)
    three = commands.add_parser("text")
    three.add_argument("run", type=Path)
    three.add_argument("--data-root", type=Path, default=Path())
    given = parser.parse_args()
    if given.command == "alone":
        recipe = alone(given.task, given.steps, given.seed)
        with TrainingDisplay() as display:
            finished = run_recipe(recipe, out=given.out, data_root=given.data_root, on_record=display.on_record)
        results = finished.evaluation.results if finished.evaluation else []
        print(json.dumps([{"task": r["task"], **r["metrics"]} for r in results]))
    elif given.command == "compare":
        for row in compare(given.run, given.other):
            print(json.dumps(row))
    else:
        print(json.dumps(text_loss(load(given.run), given.data_root)))


if __name__ == "__main__":
    main()
