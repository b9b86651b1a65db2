import json
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message
from mmgpt.evaluation.models.lm_eval_adapter import MmgptLM
from mmgpt.evaluation.models.plain_text import choose_plain, plain_text
from mmgpt.evaluation.run import evaluate
from mmgpt.evaluation.tasks.task import TaskConfig
from mmgpt.generation.assistant import Assistant

try:
    import lm_eval
    import lm_eval.tasks
except ImportError:
    lm_eval = None
needs_harness = pytest.mark.skipif(lm_eval is None, reason="lm-evaluation-harness is not installed")
ITEMS = int(os.environ.get("MMGPT_CROSS_CHECK", 60))  # 500 for the full check
WORDS = ["red", "blue", "circle", "square", "two", "many", "small", "bright", "left", "yes"]


@pytest.fixture(scope="module")
def reads(make_bundle):
    """A random model of texts, loud enough that its answers differ."""
    bundle = make_bundle(image=None)
    with torch.no_grad():
        bundle.model.decoder.head.weight *= 20
    return Assistant(bundle)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of multiple-choice items, the choices of unequal lengths, one of them not in ASCII."""
    rng, file = random.Random(0), tmp_path_factory.mktemp("made") / "test.jsonl"
    rows = []
    for number in range(ITEMS):
        texts = {" ".join(rng.choices(WORDS, k=rng.randint(1, 4))): None for _ in range(8)}
        choices = list(texts)[: rng.randint(2, 5)]  # all different, see the test of equal ones
        choices[0] += " é" * (number % 7 == 0)
        label = rng.randrange(len(choices))
        question = f"Question {number}: {' '.join(rng.choices(WORDS, k=6))}?\nAnswer:"
        rows.append({"question": question, "choices": choices, "label": label, "answer": choices[label]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def harness(reads, file, shots=0, **options):
    """The harness's own reading of the file, prompts and scores."""
    task = {
        "task": "made",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm")],
    }
    known = lm_eval.tasks.TaskManager(include_defaults=False)  # reading its own 14,000 tasks takes long
    told = {"num_fewshot": shots, "bootstrap_iters": 0, "task_manager": known}
    found = lm_eval.simple_evaluate(MmgptLM(reads, **options), tasks=[task], **told)
    return found["results"]["made"], sorted(found["samples"]["made"], key=lambda sample: sample["doc_id"])


def evaluated(model, file, normalise):
    """The samples of an evaluation of the same items."""
    reader = {"kind": "jsonl", "path": file.name, "ignore": ["label"]}
    keys = {
        "prompt": "{question}",
        "answer": "{answer}",
        "choices": "choices",
        "plain_text": True,
        "normalise": normalise,
    }
    task = {"name": "made", "kind": "choose", "reader": reader, **keys, "metrics": ["choice_accuracy"]}
    found = evaluate(model, [build(TaskConfig, task, "made")], data_root=file.parent)
    return found.value("made", "choice_accuracy"), found.samples["made-0"]


@needs_harness
def test_multiple_choice_items_are_scored_as_by_the_harness_item_for_item(reads, questions, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    results, samples = harness(reads, questions)
    for normalise, metric in ((False, "acc"), (True, "acc_norm")):
        accuracy, ours = evaluated(reads, questions, normalise)
        assert len(samples) == len(ours) == ITEMS
        assert [row["scores"]["choice_accuracy"] for row in ours] == [sample[metric] for sample in samples]
        assert accuracy == pytest.approx(results[f"{metric},none"])
        for row, sample in zip(ours, samples, strict=True):
            theirs = np.array([float(one[0][0]) for one in sample["resps"]])
            lengths = np.array([len(text) for text in row["choices"]]) if normalise else 1
            np.testing.assert_allclose(row["logprobs"], theirs / lengths, atol=1e-4)
            assert row["prediction"] == row["choices"][np.argmax(theirs / lengths)]
    assert 0 < results["acc,none"] < 1


@needs_harness
def test_solved_examples_are_spelled_as_by_the_harness(reads, questions, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    _, samples = harness(reads, questions, shots=2)
    context = samples[0]["arguments"]["gen_args_0"]["arg_0"] if isinstance(samples[0]["arguments"], dict) else None
    context = context or samples[0]["arguments"][0][0]
    first, second, asked = context.split("\n\n")
    turns = []
    for solved in (first, second):
        question, answer = solved.split("Answer: ")
        turns += [Message.of("user", f"{question}Answer:"), Message.of("assistant", answer)]
    assert plain_text([*turns, Message.of("user", asked)]) == context


def request(*arguments):
    return SimpleNamespace(args=arguments)


def scored(reads, context, text):
    return sum(reads.score(context, text))


@needs_harness
@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_probabilities_are_those_of_score(batch_size, reads):
    pairs = [("Once upon", " a time"), ("Name:", " red"), ("Once upon", " blue"), ("Name:", " a small circle")]
    adapter = MmgptLM(reads, batch_size=batch_size)
    found = adapter.loglikelihood([request(*pair) for pair in pairs])
    for (logprob, _), pair in zip(found, pairs, strict=True):
        assert logprob == pytest.approx(scored(reads, *pair), abs=1e-4)


@needs_harness
def test_a_continuation_is_greedy_where_decoding_writes_it(reads, monkeypatch):
    adapter = MmgptLM(reads)
    (reply,) = reads.continue_ids([adapter._head("Once upon")], [{"max_new_tokens": 3}])
    tails = {"a": reply.tokens, "b": reply.tokens[:2], "c": [*reply.tokens[:2], (reply.tokens[2] + 1) % 300]}
    encode = adapter._ids
    monkeypatch.setattr(adapter, "_ids", lambda text: tails.get(text) or encode(text))
    found = adapter.loglikelihood([request("Once upon", text) for text in "abc"] + [request("", " red")])
    assert [is_greedy for _, is_greedy in found] == [True, True, False, False]


@needs_harness
def test_a_long_text_is_scored_in_windows_each_token_once(reads):
    adapter = MmgptLM(reads)
    adapter.context = 16
    text = "the small red circle is left of the blue square and so on, many times over"
    ids = adapter._ids(text)
    assert len(ids) > 20
    (found,) = adapter.loglikelihood_rolling([request(text)])
    expected, read = 0.0, 0
    while read < len(ids):
        tail = ids[read : read + 16]
        seen = [*adapter._head("")[-1:], *ids[:read]]
        kept = seen[-(16 - len(tail) + 1) :]
        expected += sum(reads.score_ids([kept], [[tail]])[0][0])
        read += len(tail)
    assert found == pytest.approx(expected, abs=1e-4)
    adapter.context = 320
    (whole,) = adapter.loglikelihood_rolling([request(text)])
    assert whole == pytest.approx(sum(reads.score_ids([adapter._head("")[-1:]], [[ids]])[0][0]), abs=1e-4)
    assert abs(whole - found) > 1e-3


@needs_harness
def test_texts_are_generated_up_to_a_string_or_the_budget(reads):
    adapter = MmgptLM(reads)
    (whole,) = adapter.generate_until([request("Once upon", {"max_gen_toks": 12})])
    (cut,) = adapter.generate_until(
        [request("Once upon", {"max_gen_toks": 12, "until": whole[4:6], "do_sample": False})]
    )
    assert cut == whole[: whole.index(whole[4:6])]
    (drawn,) = adapter.generate_until([request("Once upon", {"max_gen_toks": 12, "temperature": 2.0})])
    assert drawn != whole
    with pytest.raises(UserError, match="num_beams=4 of a task's generation_kwargs is not known"):
        adapter.generate_until([request("a", {"num_beams": 4})])


@needs_harness
def test_a_prompt_over_the_context_loses_its_beginning_and_says_so(reads, caplog):
    adapter = MmgptLM(reads)
    adapter.context = 12
    text = "the small red circle is left of the blue square"
    (found,) = adapter.loglikelihood([request(text, " red")])
    head, tail = adapter._head(text), adapter._ids(" red")
    kept = head[len(head) - (12 + 1 - len(tail)) :]
    assert found[0] == pytest.approx(sum(reads.score_ids([kept], [[tail]])[0][0]), abs=1e-4)
    assert f"a prompt of {len(head)} tokens was cut to its last" in caplog.text


@needs_harness
def test_the_harness_knows_it_by_name():
    from lm_eval.api.registry import get_model

    assert get_model("mmgpt") is MmgptLM


def test_of_equal_choices_the_text_counts_as_right_whichever_is_meant(reads):
    """The harness compares numbers: there the first of two equal choices is wrong where the second is meant."""
    (chosen,) = choose_plain(reads, [[Message.of("user", "Which?")]], [["red", "red"]], normalise=False)
    assert (chosen.index, chosen.text) == (0, "red")
    assert chosen.logprobs[0] == pytest.approx(chosen.logprobs[1], abs=1e-5)


def test_plain_text_of_media_is_refused():
    with pytest.raises(UserError, match=r"the prompt holds a\.png; leave out `raw: true`"):
        plain_text([Message.of("user", Image("a.png"), "What?")])
    system = [Message.of("system", "Be brief."), Message.of("user", "What?")]
    assert plain_text(system) == "Be brief.\n\nWhat?"
