import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmgpt.datasets.worlds.scenes import scene_of
from mmgpt.datasets.worlds.sounds import EVERY, RATE, TIMBRES, TONES, UNSEEN_SOUNDS, Clip, clip_of, play

ORDER = ["first", "second", "third"]


def turns_of(sample) -> list[tuple[str, str]]:
    return [(question.text, answer.text) for question, answer in sample.branches]


def heard(caption: str) -> list[tuple[str, str]]:
    """The sounds of a caption, in order."""
    return [tuple(re.fullmatch(r"an? (\w+) (\w+)", phrase).groups()) for phrase in caption[:-1].split(", ")]


def singular(plural: str) -> str:
    return plural.removesuffix("es") if plural in ("hisses", "buzzes", "crosses") else plural.removesuffix("s")


def solve(question: str, sounds: list[tuple[str, str]], pace: str) -> str:
    def nth(word: str) -> str:
        place = ORDER.index(word)
        article = "an" if place < len(sounds) and sounds[place][0] == "arching" else "a"
        return f"{article} {' '.join(sounds[place])}" if place < len(sounds) else "nothing"

    def order(tone: str, timbre: str, side: str, other_tone: str, other: str) -> str:
        gap = sounds.index((other_tone, other)) - sounds.index((tone, timbre))
        return "yes" if (gap > 0) == (side == "before") else "no"

    def only(index: int, value: str) -> str:
        (found,) = [sound for sound in sounds if sound[index] == value]
        return found[1 - index]

    rules = {
        r"How many sounds are there\?": lambda: str(len(sounds)),
        r"How many (\w+) sounds are there\?": lambda tone: str(sum(s[0] == tone for s in sounds)),
        r"How many (\w+) are there\?": lambda many: str(sum(s[1] == singular(many) for s in sounds)),
        r"Is there an? (\w+) (\w+)\?": lambda *sound: "yes" if sound in sounds else "no",
        r"When is the (\w+) (\w+) heard\?": lambda *sound: ORDER[sounds.index(sound)],
        r"What is the (\w+) sound\?": nth,
        r"What tone is the (\w+) sound\?": lambda word: sounds[ORDER.index(word)][0],
        r"What kind is the (\w+) sound\?": lambda word: sounds[ORDER.index(word)][1],
        r"What tone is the (\w+)\?": lambda timbre: only(1, timbre),
        r"What sound is (\w+)\?": lambda tone: only(0, tone),
        r"Is the (\w+) (\w+) (before|after) the (\w+) (\w+)\?": order,
        r"Are the sounds quick or slow\?": lambda: pace,
    }
    for pattern, answer in rules.items():
        if match := re.fullmatch(pattern, question):
            return answer(*match.groups())
    raise AssertionError(f"no rule for {question!r}")


def compare(question: str, shapes: list[tuple[str, str]], sounds: list[tuple[str, str]]) -> str:
    """The answer about a picture and a clip."""
    counts = {"shapes": len(shapes), "sounds": len(sounds)}

    def count(many: str) -> int:
        if many in counts:
            return counts[many]
        return sum(pair[1] == singular(many) for pair in (*shapes, *sounds))

    def yes(is_so: bool) -> str:
        return "yes" if is_so else "no"

    rules = {
        r"Are there as many (\w+) as (\w+)\?": lambda a, b: yes(count(a) == count(b)),
        r"Are there more (\w+) than (\w+)\?": lambda a, b: yes(count(a) > count(b)),
        r"How many (\w+) and (\w+) are there together\?": lambda a, b: str(count(a) + count(b)),
        r"How many more (\w+) than (\w+) are there\?": lambda a, b: str(count(a) - count(b)),
        r"Which are there more of\?": lambda: (
            "neither" if len(set(counts.values())) == 1 else max(counts, key=counts.get)
        ),
        r"Are there both an? (\w+) (\w+) and an? (\w+) (\w+)\?": lambda a, b, c, d: yes(
            (a, b) in shapes and (c, d) in sounds
        ),
    }
    for pattern, answer in rules.items():
        if match := re.fullmatch(pattern, question):
            return answer(*match.groups())
    raise AssertionError(f"no rule for {question!r}")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_independent_solver_gives_the_answer_to_every_question_about_a_clip(split, open_world):
    source, kinds = open_world("sounds", split=split), Counter()
    for index in range(400):
        (_, caption), *turns = turns_of(source[index])
        sounds, (_, clip, _) = heard(caption), clip_of(random.Random(f"0/{split}/{index}"), split)
        assert 1 <= len(sounds) <= 3
        assert len(set(sounds)) == len(sounds)
        turns += turns_of(open_world("sound_places", split=split)[index])
        turns += turns_of(open_world("sound_lookups", split=split)[index])[1:]
        for question, answer in turns:
            assert solve(question, sounds, clip.pace) == answer, f"{caption} {question}"
            kinds[question.split()[0]] += 1
    assert set(kinds) == {"How", "Is", "When", "What", "Are"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_independent_solver_gives_the_answer_to_every_question_about_both(split, open_world):
    source, orders, answers = open_world("scene_sounds", split=split), Counter(), defaultdict(Counter)
    for index in range(400):
        rng = random.Random(f"0/{split}/{index}")
        shapes, sounds = [thing.pair for thing in scene_of(rng, split)[1]], list(clip_of(rng, split)[1].sounds)
        sample = source[index]
        orders[tuple(part.modality for part in sample.messages[0].parts)] += 1
        for question, answer in turns_of(sample):
            assert compare(question, shapes, sounds) == answer, f"{shapes} {sounds} {question}"
            answers[question.split()[2]][answer] += 1
    assert set(orders) == {("image", "audio"), ("audio", "image")}
    assert 0.45 < answers["both"]["yes"] / answers["both"].total() < 0.55


def test_each_sound_of_the_caption_is_heard_once_and_as_fast_as_is_said(open_world):
    """By ear: stretches above the noise, at least a twentieth of a second apart."""
    for index in range(150):
        rng = random.Random(f"ear/{index}")
        _, clip, _ = clip_of(rng, "test")
        samples = play(clip, rng.getrandbits(64))
        level = np.sqrt(np.convolve(samples**2, np.ones(240) / 240, mode="same"))  # over 30 ms
        is_loud = np.concatenate(([False], level > 0.035, [False]))
        starts, ends = np.flatnonzero(is_loud[1:] & ~is_loud[:-1]), np.flatnonzero(~is_loud[1:] & is_loud[:-1])
        heard_at = [starts[0], *(s for s, end in zip(starts[1:], ends[:-1], strict=True) if s - end > 0.012 * RATE)]
        assert len(heard_at) == len(clip.sounds), f"{index}: {clip}"
        if len(heard_at) > 1:
            gap = np.diff(heard_at).mean() / RATE
            assert ("quick" if gap < 0.52 else "slow") == clip.pace


@pytest.mark.parametrize("timbre", [timbre for timbre in TIMBRES if timbre not in ("hiss", "rattle")])
def test_the_pitch_moves_as_the_tone_says(timbre):
    """By the lowest strong frequency, every 15 ms."""
    for tone in TONES[:3] if timbre == "bell" else TONES:  # a bell has faded before it turns
        for number in range(8):
            samples = play(Clip(((tone, timbre),), "slow"), number)
            loud = np.flatnonzero(np.abs(samples) > 0.05)  # a bell fades
            pitches = [np.log2(_lowest_peak(samples[at : at + 480])) for at in range(loud[0], loud[-1] - 480, 120)]
            middle = pitches[len(pitches) // 2]
            moved, span = pitches[-1] - pitches[0], max(pitches) - min(pitches)
            turns = np.count_nonzero(np.diff(np.sign(np.diff(pitches))))
            heard = {
                "rising": moved > 0.2,
                "falling": moved < -0.2,
                "steady": span < 0.25,
                "wavering": turns >= 2,
                "arching": middle > max(pitches[0], pitches[-1]) - 0.1 and span > 0.2,
                "dipping": middle < min(pitches[0], pitches[-1]) + 0.1 and span > 0.2,
            }
            assert heard[tone], f"{tone} {timbre} {pitches}"


def _lowest_peak(samples: np.ndarray) -> float:
    """The lowest frequency with a third of the strongest one's amplitude, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8192))
    least = int(80 * 8192 / RATE)
    spectrum[:least] = 0
    peaks = np.flatnonzero((spectrum[1:-1] > spectrum[:-2]) & (spectrum[1:-1] >= spectrum[2:])) + 1
    strong = [peak for peak in peaks if spectrum[peak] > 0.33 * spectrum.max()]
    return strong[0] * RATE / 8192


def test_neither_length_nor_tokens_of_a_clip_tell_what_it_holds(open_world):
    source, lengths, counts = open_world("sounds"), [], []
    for index in range(1500):
        sample = source[index]
        lengths.append(len(sample.messages[0].parts[0].load().samples))
        counts.append(len(heard(turns_of(sample)[0][1])))
    bins = np.digitize(lengths, np.quantile(lengths, [0.2, 0.4, 0.6, 0.8]))
    best_by_length = sum(Counter(np.array(counts)[bins == b]).most_common(1)[0][1] for b in range(5)) / len(counts)
    best_blind = Counter(counts).most_common(1)[0][1] / len(counts)
    assert best_by_length - best_blind < 0.03
    assert abs(np.corrcoef(lengths, counts)[0, 1]) < 0.06


def test_there_are_48_sounds_of_which_training_holds_42_and_each_test_clip_one_of_the_others(open_world):
    assert len(EVERY.pairs) == 48
    assert len(UNSEEN_SOUNDS) == 6
    trained = set()
    for world in ("sounds", "sound_places"):
        source = open_world(world)
        for index in range(1500):
            texts = " ".join(f"{question} {answer}" for question, answer in turns_of(source[index]))
            trained |= set(re.findall(rf"({'|'.join(TONES)}) ({'|'.join(TIMBRES)})", texts))
    assert trained == set(EVERY.pairs) - UNSEEN_SOUNDS
    both = open_world("scene_sounds")
    for index in range(1000):
        for question, _ in turns_of(both[index]):
            assert not set(re.findall(r"(\w+) (\w+)", question)) & UNSEEN_SOUNDS
            assert not {tuple(p.split()) for p in re.findall(r"an? (\w+ \w+)", question)} & UNSEEN_SOUNDS
    test = open_world("sounds", split="test")
    assert all(set(heard(turns_of(test[index])[0][1])) & UNSEEN_SOUNDS for index in range(300))


def test_yes_and_no_and_quick_and_slow_are_balanced(open_world):
    source, answers = open_world("sound_questions"), defaultdict(Counter)
    for index in range(1500):
        for question, answer in turns_of(source[index]):
            answers[" ".join(question.split()[:2])][answer] += 1
    for beginning in ("Is there", "Is the", "Are the"):
        counter = answers[beginning]
        assert len(counter) == 2
        assert all(0.45 < count / counter.total() < 0.55 for count in counter.values()), f"{beginning} {counter}"
