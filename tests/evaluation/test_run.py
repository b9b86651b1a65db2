import json
from dataclasses import replace

import numpy as np
import pytest

import mmgpt
from mmgpt.config import UserError, build
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message
from mmgpt.evaluation import metrics
from mmgpt.evaluation.metrics import Metric
from mmgpt.evaluation.run import evaluate, rescore
from mmgpt.evaluation.tasks.task import Task, TaskConfig, load_task
from mmgpt.generation.assistant import Assistant
from mmgpt.generation.prompts import without_media

CHOICES = ["circle", "triangle", "rectangle", "red", "green", "blue", "teal", "yes", "no"]


@pytest.fixture
def choosing() -> TaskConfig:
    return changed(kind="choose", choices=CHOICES, metrics=["choice_accuracy"])


def changed(**changes) -> TaskConfig:
    return build(TaskConfig, load_task("easy_vqa").model_dump() | changes, "made")


class Watched(Assistant):
    """Keeps the conversations it was asked."""

    def __init__(self, bundle) -> None:
        super().__init__(bundle)
        self.asked: list[tuple[Message, ...]] = []

    def replies(self, messages, **options):
        self.asked += messages
        return super().replies(messages, **options)

    def choose(self, messages, choices, **options):
        self.asked += messages
        return super().choose(messages, choices, **options)


def has_media(messages) -> bool:
    return any(isinstance(part, Image) for message in messages for part in message.parts)


def test_an_evaluation_by_name_writes_the_documented_files(answerer, easy_vqa, tmp_path):
    out = tmp_path / "out"
    found = mmgpt.evaluate(answerer, ["easy_vqa"], shots=[0, 2], data_root=easy_vqa, out=out, blind=True)
    assert sorted(file.name for file in out.iterdir()) == [
        "parts",
        "results.json",
        "samples-easy_vqa-0.jsonl",
        "samples-easy_vqa-2.jsonl",
    ]
    written = json.loads((out / "results.json").read_text())
    assert written["results"] == found.results
    assert set(written) == {"model", "environment", "results"}
    assert {"mmgpt", "python", "torch", "platform", "device"} <= set(written["environment"])
    fields = {"task", "version", "kind", "shots", "seed", "n", "dropped", "metrics", "groups", "blind", "seconds"}
    fields |= {"empty", "prompt_sha256", "samples"}
    for result, shots in zip(written["results"], (0, 2), strict=True):
        assert set(result) == fields
        assert (result["task"], result["version"], result["shots"], result["n"]) == ("easy_vqa", 1, shots, 21)
        assert set(result["metrics"]["exact_match"]) == {"value", "stderr", "ci95"}
        assert set(result["blind"]) == {"exact_match", "text_only"}
        assert len(result["prompt_sha256"]) == 64
        assert result["samples"] == f"samples-easy_vqa-{shots}.jsonl"
        samples = [json.loads(line) for line in (out / result["samples"]).read_text().splitlines()]
        assert len(samples) == 21
        for sample in samples:
            assert set(sample) == {"key", "messages", "exemplars", "prediction", "reference", "references", "scores"}
            assert len(sample["exemplars"]) == shots
            assert [message["role"] for message in sample["messages"]] == ["user", "assistant"] * shots + ["user"]
    assert written["results"][0]["prompt_sha256"] != written["results"][1]["prompt_sha256"]


def test_samples_hold_the_prompt_and_the_answer_that_was_given(answerer, easy_vqa):
    found = evaluate(answerer, ["easy_vqa"], shots=[1], limit=4, data_root=easy_vqa)
    for sample in found.samples["easy_vqa-1"]:
        assert answerer.chat(sample["messages"], max_new_tokens=8).text == sample["prediction"]
    assert len({sample["prediction"] for sample in found.samples["easy_vqa-1"]}) > 1


@pytest.mark.parametrize("kind", ["generate", "choose", "classify", "rank"])
def test_rescoring_the_samples_gives_the_stored_metrics(kind, choosing, answerer, easy_vqa, tmp_path):
    task = "easy_vqa" if kind == "generate" else choosing.model_copy(update={"kind": kind})
    found = evaluate(answerer, [task], data_root=easy_vqa, out=tmp_path)
    assert rescore(tmp_path / "samples-easy_vqa-0.jsonl") == found.results[0]["metrics"]


def test_rescoring_counts_a_corrected_answer(choosing, answerer, easy_vqa, tmp_path):
    found = evaluate(answerer, [choosing], data_root=easy_vqa, out=tmp_path)
    file = tmp_path / "samples-easy_vqa-0.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    wrong = next(row for row in rows if row["prediction"] != row["reference"])
    wrong["prediction"] = wrong["reference"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gain = rescore(file)["choice_accuracy"]["value"] - found.value("easy_vqa", "choice_accuracy")
    assert gain == pytest.approx(1 / 21)


@pytest.mark.parametrize("content", [None, ""])
def test_rescoring_without_samples_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "samples-a-0.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"no samples there; `mmgpt eval --out` writes samples-TASK-SHOTS"):
        rescore(tmp_path / "samples-a-0.jsonl")


@pytest.mark.parametrize("task", ["greedy", "sampled", "choose"])
def test_scores_and_answers_are_the_same_for_every_batch_size(task, choosing, answerer, easy_vqa):
    sampled = changed(generate={"max_new_tokens": 8, "temperature": 1.0})
    config = {"greedy": load_task("easy_vqa"), "sampled": sampled, "choose": choosing}[task]
    runs = [
        evaluate(answerer, [config], shots=[0, 1], data_root=easy_vqa, batch_size=size, blind=True)
        for size in (1, 7, 32)
    ]
    answers = [[row["prediction"] for rows in run.samples.values() for row in rows] for run in runs]
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0])) > 2
    scores = [[(row["metrics"], row["blind"], row["prompt_sha256"]) for row in run.results] for run in runs]
    assert scores[0] == scores[1] == scores[2]


def test_the_score_is_the_share_of_right_answers(choosing, answerer, easy_vqa):
    found = evaluate(answerer, [choosing], data_root=easy_vqa)
    items = Task(choosing, easy_vqa).items()
    hits = [answerer.choose(item.messages, CHOICES).text == item.reference for item in items]
    assert 0 < sum(hits) < 21
    assert found.value("easy_vqa", "choice_accuracy") == pytest.approx(sum(hits) / 21)


def test_choices_after_solved_examples_are_those_of_single_prompts(choosing, answerer, easy_vqa):
    found = evaluate(answerer, [choosing], shots=[2], data_root=easy_vqa)
    for sample in found.samples["easy_vqa-2"]:
        assert answerer.choose(sample["messages"], CHOICES).text == sample["prediction"]
        assert sample["choices"] == CHOICES


@pytest.mark.parametrize("kind", ["generate", "choose"])
def test_blind_asks_the_same_again_without_media_and_guesses_from_the_words(kind, choosing, answerer, easy_vqa):
    watched = Watched(answerer.bundle)
    found = evaluate(
        watched,
        [choosing if kind == "choose" else "easy_vqa"],
        shots=[1],
        data_root=easy_vqa,
        blind=True,
    )
    seeing = watched.asked[:21]
    blind = [(*messages[:-1], *without_media(messages[-1:])) for messages in seeing]  # exemplars keep theirs
    assert all(has_media(messages[-1:]) for messages in seeing)
    spelt = [json.dumps([message.to_dict() for message in talk]) for talk in (*blind, *watched.asked[21:])]
    assert spelt[21:] == list(dict.fromkeys(spelt[:21]))  # the same prompt is asked once
    metric = "choice_accuracy" if kind == "choose" else "exact_match"
    guessed = found.results[0]["blind"]["text_only"][metric]["value"]
    assert guessed == pytest.approx(9 / 21)  # counted by hand in test_few_shot.py
    if kind == "choose":
        items = Task(choosing, easy_vqa).items()
        hits = [c.text == i.reference for c, i in zip(answerer.choose(blind, CHOICES), items, strict=True)]
        assert found.results[0]["blind"][metric]["value"] == pytest.approx(sum(hits) / 21)


def test_without_blind_and_without_a_pool_there_are_no_such_scores(answerer, easy_vqa):
    assert evaluate(answerer, ["easy_vqa"], limit=2, data_root=easy_vqa).results[0]["blind"] is None
    alone = evaluate(answerer, [changed(exemplars=None)], limit=2, data_root=easy_vqa, blind=True)
    assert set(alone.results[0]["blind"]) == {"exact_match"}


def test_progress_is_told_for_every_batch(answerer, easy_vqa):
    told = []
    evaluate(answerer, ["easy_vqa"], data_root=easy_vqa, batch_size=8, on_progress=lambda *one: told.append(one))
    assert told == [("easy_vqa", done, 21) for done in (8, 16, 21)]


def test_the_running_score_ends_at_the_score(choosing, answerer, easy_vqa):
    told = []
    found = evaluate(answerer, [choosing], data_root=easy_vqa, batch_size=8, on_score=lambda *one: told.append(one))
    assert [one[:2] for one in told] == [("easy_vqa", "choice_accuracy")] * 3
    assert told[-1][2] == pytest.approx(found.value("easy_vqa", "choice_accuracy"))
    hits = [row["scores"]["choice_accuracy"] for row in found.samples["easy_vqa-0"][:8]]
    assert told[0][2] == pytest.approx(sum(hits) / 8)


def test_several_seeds_give_a_row_each_and_their_mean_and_deviation(answerer, easy_vqa, tmp_path):
    seeds = [0, 1, 5]
    found = evaluate(answerer, ["easy_vqa"], shots=[0, 2], seeds=seeds, data_root=easy_vqa, out=tmp_path)
    assert [(row["shots"], row["seed"]) for row in found.results] == [(0, 0), (2, 0), (2, 1), (2, 5)]
    alone = [evaluate(answerer, ["easy_vqa"], shots=[2], seed=seed, data_root=easy_vqa) for seed in seeds]
    values = [one.value("easy_vqa", shots=2) for one in alone]
    assert [row["metrics"]["exact_match"]["value"] for row in found.results[1:]] == values
    (mean,) = json.loads((tmp_path / "results.json").read_text())["over_seeds"]
    assert (mean["task"], mean["shots"], mean["seeds"]) == ("easy_vqa", 2, seeds)
    spread = (sum((value - sum(values) / 3) ** 2 for value in values) / 2) ** 0.5
    assert mean["metrics"]["exact_match"] == {
        "mean": pytest.approx(sum(values) / 3),
        "deviation": pytest.approx(spread),
        "values": values,
    }
    for row, one in zip(found.results[1:], alone, strict=True):
        assert found.samples[f"easy_vqa-2-seed{row['seed']}"] == one.samples["easy_vqa-2"]
        assert row["samples"] == f"samples-easy_vqa-2-seed{row['seed']}.jsonl"
        assert (tmp_path / row["samples"]).is_file()


def test_exemplars_that_do_not_fit_are_left_out_and_counted(answerer, easy_vqa, make_bundle):
    small = Assistant(make_bundle(context=160))
    found = evaluate(small, ["easy_vqa"], shots=[12], limit=3, data_root=easy_vqa)
    kept = [len(row["exemplars"]) for row in found.samples["easy_vqa-12"]]
    assert 0 < max(kept) < 12
    assert found.results[0]["dropped"] == 36 - sum(kept)


def test_empty_answers_are_scored_as_wrong_and_named(answerer, easy_vqa):
    answerer.model.decoder.head.weight.data[:] = 0
    answerer.engine.end = 0  # the likeliest where all are alike
    found = evaluate(answerer, ["easy_vqa"], limit=4, data_root=easy_vqa)
    assert found.results[0]["empty"] == [row["key"] for row in found.samples["easy_vqa-0"]]
    assert found.value("easy_vqa") == 0


def test_a_guess_from_words_is_not_scored_where_log_probabilities_are_needed(choosing, answerer, easy_vqa, monkeypatch):
    def sample_stats(some):
        if not all(one.logprobs for one in some):
            raise UserError("needs log-probabilities")
        return np.array([[sum(one.logprobs)] for one in some])

    monkeypatch.setitem(metrics.METRICS, "sure", Metric(sample_stats))
    both = choosing.model_copy(update={"metrics": ["sure", "choice_accuracy"]})
    found = evaluate(answerer, [both], data_root=easy_vqa, blind=True).results[0]
    assert list(found["blind"]) == ["sure", "choice_accuracy", "text_only"]
    assert list(found["blind"]["text_only"]) == ["choice_accuracy"]


def test_tags_are_reported_apart(answerer, easy_vqa, monkeypatch):
    def tagged(self, limit=None):
        kinds = ["shape", "colour", "yes/no"]
        return [replace(item, tags={"kind": kinds[n % 3]}) for n, item in enumerate(every_item(self, limit))]

    every_item = Task.items
    monkeypatch.setattr(Task, "items", tagged)
    choosing = changed(kind="choose", choices=CHOICES, metrics=["choice_accuracy"])
    found = evaluate(answerer, [choosing], data_root=easy_vqa)
    rows = found.samples["easy_vqa-0"]
    by_kind = found.results[0]["groups"]["kind"]
    assert list(by_kind) == ["colour", "shape", "yes/no"]
    for kind, own in by_kind.items():
        hits = [row["scores"]["choice_accuracy"] for row in rows if row["tags"]["kind"] == kind]
        assert own["n"] == 7
        assert own["choice_accuracy"]["value"] == pytest.approx(sum(hits) / 7)


def test_several_tasks_and_limits_are_scored_in_order(answerer, easy_vqa):
    found = evaluate(answerer, ["easy_vqa", "scene_questions"], limit=3, data_root=easy_vqa)
    assert [(row["task"], row["n"]) for row in found.results] == [("easy_vqa", 3), ("scene_questions", 3)]
    assert list(found.samples) == ["easy_vqa-0", "scene_questions-0"]


@pytest.mark.parametrize(
    ("tasks", "options", "told"),
    [
        (["easy_vqua"], {}, "did you mean easy_vqa"),
        (["easy_vqa"], {"data_root": "not/there"}, "no such file or folder; set --data-root"),
        (["easy_vqa"], {"shots": [13]}, "13 shots asked for, it has 12 exemplars"),
        (["easy_vqa"], {"shots": ["many"]}, "many"),
        (["easy_vqa"], {"blind": ["closed"]}, "closed"),
        (["easy_vqa", "easy_vqa"], {}, "2 tasks are called easy_vqa, as would be their files; rename one"),
        (["easy_vqa"], {"place": (0, 2)}, "2 processes share their answers in files; give out"),
        (["easy_vqa"], {"seeds": []}, "seeds are none"),
    ],
)
def test_what_cannot_be_scored_is_refused(tasks, options, told, answerer, easy_vqa, make_bundle):
    answerer = Assistant(make_bundle(context=160))
    with pytest.raises(UserError, match=told):
        evaluate(answerer, tasks, **{"data_root": easy_vqa, **options})


def test_wrong_tasks_are_refused_before_any_is_scored(answerer, easy_vqa):
    watched = Watched(answerer.bundle)
    with pytest.raises(UserError, match="did you mean"):
        evaluate(watched, ["easy_vqa", "scene_question"], data_root=easy_vqa)
    assert watched.asked == []
