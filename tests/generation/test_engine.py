import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mmgpt.config import UserError
from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message
from mmgpt.generation.assistant import Assistant
from mmgpt.generation.decode import Reply, decode_one
from mmgpt.generation.engine import Engine, Request
from mmgpt.generation.generate import GenerationRequest, generate
from mmgpt.generation.prefix_cache import LEAST_SHARED, LRUCache, shared_length
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import Rendered

NO_END = -1
CLOSE = 1e-5  # two logits this near may change places with the order of a sum
SYSTEM = Message.of("system", "FrameSelection at the pictures and listen to the sounds, and answer in a few words.")


@pytest.fixture(scope="module")
def hearing(make_bundle: Callable[..., Any]) -> Assistant:
    """A model of pictures and sounds, with a loud output layer."""
    bundle = make_bundle(audio={"kind": "mlp", "stride": 2}, template="chatml")
    with torch.no_grad():
        bundle.model.decoder.head.weight *= 20
    return Assistant(bundle)


def mixed(count: int) -> list[tuple[Message, ...]]:
    """Seeded prompts of pictures, sounds and text, of one to three turns, some with a system turn that they share."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    pictures = [Image(noise.integers(0, 255, (16, 16, 3))) for _ in range(6)]
    sounds = [Audio(noise.normal(size=length).astype(np.float32), rate=8000) for length in (900, 1600, 2400)]
    words = ["How many circles are there?", "What sounds first?", "Is it red", "2 + 2 =", "Where is the small square"]
    prompts = []
    for _ in range(count):
        turns = [SYSTEM] if rng.random() < 0.5 else []
        for _ in range(rng.choice([0, 0, 1, 2])):
            turns += [Message.of("user", rng.choice(pictures), rng.choice(words)), Message.of("assistant", "yes")]
        media = rng.sample(pictures, rng.choice([0, 1, 2])) + rng.sample(sounds, rng.choice([0, 0, 1]))
        turns.append(Message.of("user", *media, rng.choice(words), str(rng.random())))
        prompts.append(tuple(turns))
    return prompts


def rendered(assistant: Assistant, conversations) -> list[Rendered]:
    return [assistant.renderer.prompt(one, f"prompt {at}") for at, one in enumerate(conversations)]


def engine_of(assistant: Assistant) -> Engine:
    return Engine(assistant.model, assistant.tokenizer, NO_END)


def run(engine: Engine, prompts: list[Rendered], max_batch: int, **options: Any) -> list[list[int]]:
    config = GenerateConfig(**{"max_new_tokens": 8, **options})
    seeded = [(one, config.model_copy(update={"seed": config.seed + at})) for at, one in enumerate(prompts)]
    return [reply.tokens for reply in engine.generate(seeded, max_batch)]


def varied(prompts: list[Rendered]) -> list[tuple[Rendered, GenerateConfig]]:
    return [(one, GenerateConfig(max_new_tokens=1 + at % 11)) for at, one in enumerate(prompts)]


def drain(engine: Engine, requests: list[Request]) -> list[Reply]:
    while not all(one.is_done for one in requests):
        engine.step()
    return [one.result() for one in requests]


@torch.no_grad()
def gap(assistant: Assistant, prompt: Rendered, ids: list[int]) -> float:
    """The distance of the two likeliest tokens after a prompt and some ids."""
    whole = [*prompt.ids, *ids]
    row = Rendered(whole, [-100] * len(whole), [0] * len(whole), list(range(len(whole))), prompt.media, "", "")
    hidden_BTD = assistant.model.eval().hidden(collate([row]))
    first, second = assistant.model.decoder.logits(hidden_BTD[0, -1]).topk(2).values.tolist()
    return first - second


def test_200_mixed_prompts_have_the_same_answers_alone_batched_joining_after_a_known_prefix_and_guessed(hearing):
    prompts = rendered(hearing, mixed(200))
    assert {len(one.media) for one in prompts} >= {0, 1, 2, 3}
    budget = [config.max_new_tokens for _, config in varied(prompts)]
    alone = []
    for prompt, config in varied(prompts):  # an engine each: nothing is known, nobody is beside it
        alone.append(drain(engine := engine_of(hearing), [engine.submit(prompt, config)])[0].tokens)
    assert [len(tokens) for tokens in alone] == budget
    assert len({tuple(tokens) for tokens in alone if len(tokens) > 3}) > 100
    engine = engine_of(hearing)
    batched = [r.tokens for r in drain(engine, [engine.submit(*one) for one in varied(prompts)])]
    cached = [reply.tokens for reply in engine.generate(varied(prompts), 7)]  # joins mid-way, beginnings known
    assert len(engine.prefiller.prefixes) > 10
    lookup = {"speculation": "lookup"}
    asked = [
        GenerationRequest(lambda one=one: one, options.model_copy(update=lookup), 0) for one, options in varied(prompts)
    ]
    guessed = [reply.tokens for reply in generate(engine_of(hearing), asked, 32)]
    ties = 0
    for other in (batched, cached, guessed):
        for prompt, one, two in zip(prompts, alone, other, strict=True):
            if one != two:
                at = next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
                assert gap(hearing, prompt, one[:at]) < CLOSE
                ties += 1
    assert ties <= 2


def test_what_is_drawn_depends_on_the_seed_alone(hearing):
    prompts = rendered(hearing, mixed(12))
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 3}
    engine = engine_of(hearing)
    runs = [run(engine, prompts, max_batch, **options) for max_batch in (12, 5, 1)]
    assert runs[0] == runs[1] == runs[2]
    configs = [GenerateConfig(**options | {"seed": 3 + at}, max_new_tokens=8) for at in range(12)]
    mixed_in = [engine.submit(prompts[at], configs[at]) for at in reversed(range(12))]
    assert [reply.tokens for reply in drain(engine, mixed_in)][::-1] == runs[0]
    assert run(engine, prompts, 12, **options | {"seed": 4}) != runs[0]


def test_short_answers_leave_and_others_join_in_their_rows(hearing, monkeypatch):
    prompts, heights = rendered(hearing, mixed(9)), []
    original = decode_one
    watched = lambda model, cache, ids_B: heights.append(len(ids_B)) or original(model, cache, ids_B)  # noqa: E731
    monkeypatch.setattr("mmgpt.generation.engine.decode_one", watched)
    lengths = [12, 2, 2, 2, 2, 2, 2, 2, 2]
    configs = [GenerateConfig(max_new_tokens=length) for length in lengths]
    engine = engine_of(hearing)
    replies = list(engine.generate(zip(prompts, configs, strict=True), 3))
    assert [len(reply.tokens) for reply in replies] == lengths
    assert len(heights) == 11  # the long answer's: the short ones took no step of their own
    assert sum(heights) == sum(length - 1 for length in lengths)
    assert (engine.running, list(engine.waiting), engine.cache) == ([], [], None)


def test_prompts_are_rendered_only_when_a_row_is_free(hearing):
    prompts, taken = rendered(hearing, mixed(10)), []
    source = ((taken.append(at) or one, GenerateConfig(max_new_tokens=3)) for at, one in enumerate(prompts))
    replies = engine_of(hearing).generate(source, 4)
    next(replies)
    assert len(taken) <= 8
    assert len(list(replies)) == 9


def test_a_shared_beginning_is_read_once_with_its_media_and_exactly(hearing, monkeypatch):
    shots = mixed(40)[:3]
    beginning = tuple(turn for one in shots for turn in one if turn.role != "system")
    asked = [(*beginning, Message.of("user", f"And {number}?")) for number in range(5)]
    prompts = rendered(hearing, asked)
    fresh = [run(engine_of(hearing), [one], 1)[0] for one in prompts]
    read, encoded = [], []
    forward, tokens = hearing.model.decoder.forward, hearing.model.media_tokens
    monkeypatch.setattr(
        hearing.model.decoder, "forward", lambda x, *a, **k: read.append(x.shape[0] * x.shape[1]) or forward(x, *a, **k)
    )
    monkeypatch.setattr(
        hearing.model, "media_tokens", lambda kind, media: encoded.append(len(media.names)) or tokens(kind, media)
    )
    engine = engine_of(hearing)
    assert run(engine, prompts, 5, max_new_tokens=8) == fresh
    total = sum(len(one.ids) for one in prompts)
    assert sum(encoded) == len(
        {id(part) for turn in beginning for part in turn.parts if isinstance(part, Image | Audio)}
    )
    assert read[0] == len(prompts[0].ids)
    assert sum(read) - 5 * 7 < len(prompts[0].ids) + 4 * 24 < total / 2
    read.clear(), encoded.clear()
    assert run(engine, prompts[2:3], 1, max_new_tokens=1) == [fresh[2][:1]]  # a second call
    assert (sum(read) < 24, encoded) == (True, [])


@pytest.mark.parametrize(
    "decoder",
    [
        {"window": 7, "global_layers": [1], "token_shift": False},
        {"attention_softcap": 5.0},
        {"position": "learned", "token_shift": False},
    ],
    ids=["window", "capped", "learned positions"],
)
def test_a_known_beginning_is_exact_in_every_kind_of_decoder(decoder, make_assistant, conversations):
    assistant = make_assistant(**decoder)
    shared = Message.of("user", "There is a red circle in the middle of the picture, and a blue square below.")
    asked = [(shared, Message.of("assistant", "yes"), *talk) for talk in conversations]
    prompts = rendered(assistant, asked)
    fresh = [run(engine_of(assistant), [one], 1)[0] for one in prompts]
    engine = engine_of(assistant)
    assert run(engine, prompts, 3) == fresh
    assert all(engine.prefiller.match(engine.prefiller.text(one).token_keys)[1] > LEAST_SHARED for one in prompts)


def test_another_picture_of_the_same_size_is_no_shared_beginning(hearing):
    noise = np.random.default_rng(1).integers(0, 255, (2, 16, 16, 3))
    texts = [
        hearing.engine.prefiller.text(hearing.renderer.prompt((Message.of("user", "Look: ", Image(one), "Where?"),)))
        for one in (noise[0], noise[0].copy(), noise[1])
    ]
    before = texts[0].media[0].places_K[0]
    assert texts[0].prompt.ids == texts[2].prompt.ids
    assert shared_length(texts[0].token_keys, texts[1].token_keys) == len(texts[0].token_keys)
    assert shared_length(texts[0].token_keys, texts[2].token_keys) == before


def test_placeholders_without_their_medium_are_told(hearing):
    prompt = hearing.renderer.prompt((Message.of("user", "Look: ", mixed(9)[0][-1].parts[0], "Where?"),), "mine")
    bare = replace(prompt, ids=[hearing.model.placeholder_ids["image"], *prompt.ids])
    with pytest.raises(ValueError, match=r"mine: the prompt holds \d+ image placeholders but its media have \d+"):
        engine_of(hearing).submit(bare, GenerateConfig())


def test_new_weights_make_what_was_computed_with_the_old_ones_forgotten(make_assistant, conversations):
    assistant = make_assistant()
    assistant.chat(conversations, max_new_tokens=4)
    with torch.no_grad():
        assistant.model.decoder.blocks[0].attention.key.weight.mul_(-2)
        assistant.model.adapters["image"].project[0].weight.mul_(2)
    fresh = [reply.tokens for reply in Assistant(assistant.bundle).chat(conversations, max_new_tokens=4)]
    assert [reply.tokens for reply in assistant.chat(conversations, max_new_tokens=4)] == fresh


def test_the_least_recently_used_go_first_and_memory_stays_within_its_bound(hearing):
    held: LRUCache[str] = LRUCache(10)
    for key in (b"a", b"b", b"c"):
        held.add(key, key.decode(), 4)
    assert [key for key in (b"a", b"b", b"c") if held.holds(key)] == [b"b", b"c"]
    assert held.get(b"b") == "b"
    held.add(b"d", "d", 4)
    held.add(b"huge", "huge", 11)
    assert [key for key in (b"b", b"c", b"d", b"huge") if held.holds(key)] == [b"b", b"d"]
    assert held.num_bytes == 8
    engine = engine_of(hearing)
    engine.prefiller.prefixes.limit, engine.prefiller.features.limit = 400_000, 4_000
    run(engine, rendered(hearing, mixed(40)), 4, max_new_tokens=2)
    assert 0 < engine.prefiller.prefixes.num_bytes <= 400_000
    assert 0 < engine.prefiller.features.num_bytes <= 4_000


@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_out_of_memory_halves_the_rows_and_goes_on(where, hearing, monkeypatch):
    prompts, sizes = rendered(hearing, mixed(8)), []
    wanted = run(engine_of(hearing), prompts, 8)
    engine = engine_of(hearing)
    original = hearing.model.decoder.logits

    def limited(hidden_BD: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden_BD))
        if len(hidden_BD) > 3 if where == "prefill" else len(engine.running) > 3 and len(sizes) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(hidden_BD)

    monkeypatch.setattr(hearing.model.decoder, "logits", limited)
    assert run(engine, prompts, 8) == wanted
    assert max(sizes[-8:]) <= 3


def test_a_prompt_that_does_not_fit_the_memory_alone_is_told_and_the_engine_goes_on(hearing, monkeypatch):
    prompts = rendered(hearing, mixed(2))
    wanted = run(engine_of(hearing), prompts, 2)
    engine = engine_of(hearing)
    with monkeypatch.context() as patch:
        patch.setattr(hearing.model.decoder, "logits", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
        with pytest.raises(MemoryError, match=r"prompt 0: \d+ tokens do not fit the memory even alone"):
            run(engine, prompts, 2)
    assert run(engine, prompts, 2) == wanted


def test_logits_that_are_not_numbers_end_their_request_alone(hearing):
    prompts = rendered(hearing, mixed(3))
    wanted = run(engine_of(hearing), prompts, 3)
    engine, original, calls = engine_of(hearing), decode_one, []

    def broken(model, cache, ids_B):
        logits_BV = original(model, cache, ids_B)
        calls.append(1)
        if len(calls) == 2:
            logits_BV[1, 7] = float("nan")
        return logits_BV

    engine.decode = broken
    requests = [engine.submit(one, GenerateConfig(max_new_tokens=8)) for one in prompts]
    while not all(one.is_done for one in requests):
        engine.step()
    failed = [at for at, one in enumerate(requests) if one.error]
    assert len(failed) == 1
    with pytest.raises(FloatingPointError, match=f"prompt {failed[0]}: .* not numbers; .* diverged"):
        requests[failed[0]].result()
    assert [one.reply.tokens for at, one in enumerate(requests) if at not in failed] == [
        tokens for at, tokens in enumerate(wanted) if at not in failed
    ]


def test_a_stream_that_nobody_reads_on_frees_its_row_and_the_others_go_on(hearing):
    talks = mixed(3)
    wanted = ["".join(hearing.stream(one, max_new_tokens=12)) for one in talks]
    streams = [hearing.stream(one, max_new_tokens=12) for one in talks]
    said = [next(one) for one in streams]
    assert len(hearing.engine.running) == 3
    streams[1].close()
    assert len(hearing.engine.running) == 2
    assert hearing.chat(talks[1], max_new_tokens=12).text == wanted[1]  # beside the two that wait
    assert [said[at] + "".join(streams[at]) for at in (0, 2)] == [wanted[0], wanted[2]]
    assert (hearing.engine.running, hearing.engine.cache) == ([], None)


def test_a_wrong_prompt_within_a_list_leaves_no_row_behind(hearing):
    with pytest.raises(UserError, match="the prompt is empty"):
        hearing.chat([*mixed(3), []], batch_size=2)
    assert (hearing.engine.running, list(hearing.engine.waiting)) == ([], [])


def test_every_conversation_may_have_options_of_its_own(hearing):
    talks = mixed(3)
    own = [{"max_new_tokens": 3}, {"temperature": 1.0}, {"stop": ["e"]}]
    together = hearing.chat(talks, each=own, max_new_tokens=20, seed=5)
    assert len(together[0].tokens) == 3
    for at, options in enumerate(own):
        alone = hearing.chat(talks[at], **{"max_new_tokens": 20, "seed": 5 + at, **options})
        assert (alone.text, alone.tokens, alone.finish_reason) == (
            together[at].text,
            together[at].tokens,
            together[at].finish_reason,
        )
    with pytest.raises(UserError, match="1 options in each for 3 conversations; give as many"):
        hearing.chat(talks, each=own[:1])


def test_a_reply_tells_its_times(hearing):
    reply = hearing.chat(mixed(1)[0], max_new_tokens=4)
    assert 0 < reply.seconds_to_first < reply.seconds


def test_any_number_of_choices_is_scored_in_bounded_memory(hearing, monkeypatch):
    talk = mixed(5)[4]
    choices = [
        " ".join(random.Random(number).choices(["red", "blue", "three"], k=1 + number % 9)) for number in range(80)
    ]
    whole = hearing.choose(talk, choices)
    assert sum(len(hearing.tokenizer.encode(one)) for one in choices) > hearing.renderer.context
    sizes, new = [], hearing.model.decoder.new_cache
    monkeypatch.setattr(hearing.model.decoder, "new_cache", lambda b, s: sizes.append(b * s) or new(b, s))
    monkeypatch.setattr("mmgpt.generation.loglikelihood.MAX_CACHE_SLOTS", 1000)
    few = hearing.choose(talk, choices)
    assert max(sizes) <= 1000
    assert few.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
    pair = hearing.choose(talk, choices[17:19])
    assert pair.logprobs == pytest.approx(whole.logprobs[17:19], abs=1e-4)


def test_the_shortest_beginning_worth_keeping_is_found_and_no_shorter_one(hearing):
    prefiller = engine_of(hearing).prefiller
    ids = torch.randint(20, 300, (LEAST_SHARED + 4,)).tolist()
    plain = lambda ids: prefiller.text(Rendered(ids, ids, [0] * len(ids), list(range(len(ids))), [], "", ""))  # noqa: E731
    prefiller.read(hearing.model.decoder.new_cache(1, 64), [plain(ids)])
    assert prefiller.match(plain([*ids[:LEAST_SHARED], 5, 6]).token_keys)[1] == LEAST_SHARED
    assert prefiller.match(plain([*ids[: LEAST_SHARED - 1], 5, 6]).token_keys)[1] == 0
    assert prefiller.match(plain(ids).token_keys)[1] == len(ids) - 1


def test_calls_from_several_threads_share_the_batch_and_have_their_own_answers(hearing):
    talks = mixed(8)
    wanted = [hearing.chat(one, max_new_tokens=10).tokens for one in talks]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: hearing.chat(one, max_new_tokens=10).tokens, talks))
    assert found == wanted
    assert (hearing.engine.running, hearing.engine.cache) == ([], None)
