import io
import json
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmgpt.config import UserError, build
from mmgpt.datasets.media import Audio, Image, MediaError, Video
from mmgpt.datasets.sample import Message, media_of
from mmgpt.evaluation.metrics import exact_match
from mmgpt.evaluation.tasks.blind_baselines import ABLATIONS, TextOnlyBaseline, ablate_media
from mmgpt.evaluation.tasks.exemplar_pool import identity
from mmgpt.evaluation.tasks.few_shot import Exemplars, Shots
from mmgpt.evaluation.tasks.item import TaskItem, items_of
from mmgpt.evaluation.tasks.task import Task, TaskConfig, load_task
from mmgpt.generation.prompts import without_media


@pytest.fixture
def task(easy_vqa) -> Task:
    return Task(load_task("easy_vqa"), easy_vqa)


def picture(width: int, height: int) -> Image:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((width, height), 30).convert("RGB").save(buffer, "PNG")
    return Image(buffer.getvalue())


def sound(samples: int, rate: int) -> Audio:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(samples) + samples), rate, format="WAV")
    return Audio(buffer.getvalue())


def item_of(key: str, *media) -> TaskItem:
    return TaskItem(key, (Message.of("system", "answer"), Message.of("user", "this", *media, "is?")), "a", ("a",))


def spelt(messages) -> list:
    return [message.to_dict() for message in messages]


@pytest.mark.parametrize("mode", ABLATIONS)
def test_the_items_own_media_go_and_those_of_its_exemplars_stay(mode, task):
    items = task.items()
    pool = Exemplars(task.pool, "easy_vqa")
    for item in items[:5]:
        prompt = pool.prompt(item, Shots.parse("2")).messages
        blind = ablate_media(mode, prompt, item, items, 0)
        assert blind[:-1] == prompt[:-1]
        assert [(turn.role, turn.text) for turn in blind] == [(turn.role, turn.text) for turn in prompt]
        own, shown = media_of(item.messages), media_of(blind[-1:])
        assert len(shown) == (mode != "removed") * len(own)
        assert not {identity(one) for one in own} & {identity(one) for one in shown}


def test_removed_without_exemplars_is_a_prompt_in_words_alone(task):
    items = task.items()
    for item in items:
        assert ablate_media("removed", item.messages, item, items, 0) == without_media(item.messages)


@pytest.mark.parametrize("mode", ABLATIONS)
def test_what_is_shown_blind_depends_on_seed_and_key_alone(mode, task):
    items = task.items()
    shown = [spelt(ablate_media(mode, item.messages, item, items, 3)) for item in items]
    again = {n: spelt(ablate_media(mode, items[n].messages, items[n], items, 3)) for n in reversed(range(len(items)))}
    assert [again[n] for n in range(len(items))] == shown
    other = [spelt(ablate_media(mode, item.messages, item, items, 4)) for item in items]
    assert (other == shown) == (mode == "removed")


def test_shuffled_media_are_of_other_items_in_the_same_kinds_and_places():
    mixed = [item_of(f"m{n}", picture(8 + n, 8), sound(100 + n, 8_000), picture(20 + n, 8)) for n in range(4)]
    lone = [item_of(f"p{n}", picture(40 + n, 8)) for n in range(4)]
    items = [*mixed, *lone, item_of("words")]
    for item in items:
        own = media_of(item.messages)
        shown = media_of(ablate_media("shuffled", item.messages, item, items, 0))
        assert [one.modality for one in shown] == [one.modality for one in own]
        assert not {identity(one) for one in own} & {identity(one) for one in shown}
        assert len(set(shown)) == len(shown)


def test_shuffled_never_shows_another_question_about_the_same_picture():
    same = picture(8, 8)
    items = [item_of(f"q{n}", Image(same.source)) for n in range(9)] + [item_of("other", picture(9, 9))]
    for item in items[:9]:
        (shown,) = media_of(ablate_media("shuffled", item.messages, item, items, 0))
        assert shown.load().size == (9, 9)
    (alone,) = media_of(ablate_media("shuffled", items[0].messages, items[0], items[:9], 0))
    assert alone is media_of(items[0].messages)[0]


def test_noise_has_the_size_of_the_picture_and_the_length_and_rate_of_the_sound():
    item = item_of("k", picture(40, 30), sound(900, 11_025), picture(40, 30))
    one, heard, two = media_of(ablate_media("noise", item.messages, item, [item], 0))
    pixels = np.asarray(one.load())
    assert one.load().size == (40, 30)
    assert pixels.mean() == pytest.approx(127.5, abs=6)
    assert pixels.std() == pytest.approx(73.9, abs=4)
    assert (pixels != np.asarray(two.load())).mean() > 0.9
    samples, rate = heard.load()
    assert (len(samples), rate) == (900, 11_025)
    assert samples.std() == pytest.approx(0.1, abs=0.02)
    assert abs(np.corrcoef(samples[1:], samples[:-1])[0, 1]) < 0.15


def test_wrong_modes_and_noise_for_what_has_none_are_refused():
    item = item_of("k", Video(b"v", label="v.mp4"))
    with pytest.raises(UserError, match="blind mode 'nose' is not known; did you mean noise"):
        ablate_media("nose", item.messages, item, [item], 0)
    with pytest.raises(UserError, match=r"v.mp4: blind=noise makes no video; give blind=removed or shuffled"):
        ablate_media("noise", item.messages, item, [item], 0)
    with pytest.raises(MediaError, match=r"p.png: .*not a picture"):
        ablate_media("noise", (), item_of("k", Image(b"no", label="p.png")), [], 0)


def test_the_text_only_guess_equals_a_count_by_hand(task, easy_vqa):
    rows = json.loads((easy_vqa / "easy_vqa" / "train" / "questions.json").read_text())
    guess = TextOnlyBaseline(task.pool)
    hits = 0
    for item in task.items():
        counts = Counter(answer for question, answer, _ in rows if question == item.question)
        assert counts[guess.answer(item)] == max(counts.values())
        hits += guess.answer(item) == item.reference
    # by hand, of seven pictures: circles 2 (21, 24); the colour of 20, 24 is red; no circle in 5
    assert hits == 2 + 2 + 5


def test_words_never_seen_get_the_most_frequent_answer_of_all(task):
    assert TextOnlyBaseline(task.pool).answer(TaskItem("k", (Message.of("user", "why?"),), "", ())) == "no"


def test_a_question_never_asked_is_cut_to_the_longest_beginning_that_was(task):
    guess = TextOnlyBaseline(task.pool)
    same = TaskItem("k", (Message.of("user", "what is the color of the shape?"),), "", ())
    longer = TaskItem("k", (Message.of("user", "what is the color of this thing?"),), "", ())
    assert guess.answer(longer) == guess.answer(same) == "red"
    assert guess.answer(TaskItem("k", (Message.of("user", "what shape?"),), "", ())) != "red"


def test_the_guess_among_choices_is_the_one_most_frequent_in_training(tmp_path, easy_vqa):
    config = load_task("easy_vqa").model_dump() | {"kind": "choose", "choices": ["circle", "yes", "no"]}
    task = Task(build(TaskConfig, config, "made"), easy_vqa)
    item = TaskItem("k", list(items_of(task.test[0]))[2].messages, "no", ("no",), ("circle", "yes", "no"))
    assert TextOnlyBaseline(task.pool).answer(item) == "no"


def test_the_text_only_guess_of_easy_vqa_is_the_published_one(data_packs):
    task = Task(load_task("easy_vqa"), data_packs)
    items = task.items()
    assert len(items) == 9_673
    guess = TextOnlyBaseline(task.pool)
    share = sum(exact_match(guess.answer(item), item.references) for item in items) / len(items)
    assert 100 * share == pytest.approx(67.00, abs=0.01)
