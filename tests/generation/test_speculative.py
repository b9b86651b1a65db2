import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.generation.assistant import Assistant
from mmgpt.generation.decode import decode_many, decode_one, prefill
from mmgpt.generation.engine import Engine
from mmgpt.generation.prefill import TokenSequence
from mmgpt.generation.sampling import GenerateConfig, Sampler, make_sampler
from mmgpt.generation.speculative import DraftModel, PromptLookup, Proposer, check_draft, look_up
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.config import ModelConfig
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.multimodal import MultimodalModel

VOCAB, END = 96, 7
SIZES = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "zero_init": False, "context": 128}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "token shift": {"token_shift": True},
    "learned": {"position": "learned", "norm": "layer", "mlp": "gelu"},
    "window": {"window": 6, "depth": 3, "global_layers": [1]},
}


def model_of(seed: int = 0, loud: float = 20.0, **decoder: Any) -> MultimodalModel:
    torch.manual_seed(seed)
    model = MultimodalModel(ModelConfig(decoder=DecoderConfig(**{**SIZES, **decoder})), VOCAB, {}).eval()
    with torch.no_grad():
        model.decoder.head.weight *= loud
    return model


def prompt_of(ids: Sequence[int]) -> Rendered:
    return Rendered(list(ids), [-100] * len(ids), [0] * len(ids), list(range(len(ids))), [], "p", "")


def random_prompts(count: int, seed: int = 0) -> list[Rendered]:
    rng = random.Random(seed)
    return [prompt_of([rng.randrange(8, VOCAB) for _ in range(rng.randint(1, 30))]) for _ in range(count)]


class Silent:
    """A tokenizer for ids that are no text."""

    def decode(self, tokens: Sequence[int]) -> str:
        return ""


@dataclass(eq=False)
class Watched:
    """A guesser whose guesses are counted."""

    inner: Proposer
    passes: int = 0
    guessed: int = 0
    heights: list[int] = field(default_factory=list)

    def propose(self, texts: Sequence[TokenSequence], count: int) -> list[list[int]]:
        guesses = self.inner.propose(texts, count)
        self.passes += 1
        self.guessed += sum(map(len, guesses))
        self.heights.append(len(texts))
        return guesses


Rows = list[list[tuple[int, float]]]  # ids with their log-probabilities


def choosers_of(prompts: list[Rendered], config: GenerateConfig, eos_token_id: int) -> list[Sampler]:
    return [make_sampler(config, None, config.seed + at, one.ids, eos_token_id) for at, one in enumerate(prompts)]


@pytest.fixture
def plainly(decode_plainly) -> Callable[..., Rows]:
    def decode(model: MultimodalModel, prompts: list[Rendered], eos_token_id: int = END, **options: Any) -> Rows:
        config = GenerateConfig(**options)
        return decode_plainly(
            model, prompts, choosers_of(prompts, config, eos_token_id), eos_token_id, config.max_new_tokens
        )

    return decode


def guessed(
    model: MultimodalModel, prompts: list[Rendered], proposer: Proposer, eos_token_id: int = END, **options: Any
) -> Rows:
    """Answers by an engine whose guesses all come from this proposer."""
    config = GenerateConfig(speculation="draft", **options)
    engine = Engine(model, Silent(), eos_token_id)
    seeded = [(one, config.model_copy(update={"seed": config.seed + at})) for at, one in enumerate(prompts)]
    return [
        list(zip(reply.tokens, reply.logprobs, strict=True))
        for reply in engine.generate(seeded, len(prompts), proposer)
    ]


def assert_same(found: Rows, wanted: Rows) -> None:
    assert [[token for token, _ in row] for row in found] == [[token for token, _ in row] for row in wanted]
    for own, other in zip(found, wanted, strict=True):
        assert [logprob for _, logprob in own] == pytest.approx([logprob for _, logprob in other], abs=1e-4)


def draft_for(model: MultimodalModel, **decoder: Any) -> DraftModel:
    """A draft that often agrees: the model itself with its weights a little off."""
    draft = model_of(**decoder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += 0.1 * parameter.abs().mean() * torch.randn_like(parameter)
    return DraftModel(draft, model)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_read_together_have_the_logits_of_tokens_read_one_by_one_and_can_be_taken_back(kind):
    model, prompts = model_of(**KINDS[kind]), random_prompts(4)
    cache, _ = prefill(model, prompts, 20)
    plain, _ = prefill(model, prompts, 20)
    ids_BT = torch.randint(8, VOCAB, (4, 5))
    for kept in ([5, 1, 3, 2], [1, 4, 5, 1]):
        logits_BTV = decode_many(model, cache, ids_BT.tolist())
        counts_B = torch.tensor(kept)
        cache.lengths_B = cache.lengths_B + counts_B
        for step in range(5):  # rows that stop early are put back as they were
            lengths_B = plain.lengths_B
            logits_BV = decode_one(model, plain, ids_BT[:, step])
            going_B = counts_B > step
            torch.testing.assert_close(logits_BTV[going_B, step], logits_BV[going_B], atol=2e-4, rtol=1e-5)
            plain.lengths_B = torch.where(going_B, plain.lengths_B, lengths_B)
        assert torch.equal(cache.lengths_B, plain.lengths_B)
        ids_BT = ids_BT.flip(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["lookup", "draft"])
def test_speculation_gives_the_greedy_tokens_of_random_prompts(kind, by, plainly):
    model, prompts = model_of(**KINDS[kind]), random_prompts(25)  # 100 prompts over the four kinds
    eos_token_id = plainly(model, prompts[:1], eos_token_id=-1, max_new_tokens=3)[0][2][0]
    wanted = plainly(model, prompts, eos_token_id, max_new_tokens=16)
    watched = Watched(PromptLookup() if by == "lookup" else draft_for(model, **KINDS[kind]))
    assert_same(guessed(model, prompts, watched, eos_token_id, max_new_tokens=16), wanted)
    lengths = [len(row) for row in wanted]
    assert min(lengths) <= 3 < max(lengths) == 16
    assert watched.heights[0] >= 24 > watched.heights[-1]


def test_repetitive_texts_take_many_guesses_of_the_look_up(plainly):
    model, prompts = model_of(window=1), random_prompts(100)  # each token follows from the one before: circles
    wanted = plainly(model, prompts, eos_token_id=-1, max_new_tokens=48)
    watched = Watched(PromptLookup())
    assert_same(guessed(model, prompts, watched, eos_token_id=-1, max_new_tokens=48), wanted)
    passes = sum(watched.heights)  # of all rows, where plain decoding takes 47 a row
    taken = 100 * 47 - passes
    print(f"look-up: {taken} of {watched.guessed} guesses taken, {passes} row passes instead of {100 * 47}")
    assert taken > 0.5 * watched.guessed
    assert passes < 0.5 * 100 * 47


def test_a_draft_like_the_model_saves_most_passes(plainly):
    model, prompts = model_of(), random_prompts(20)
    wanted = plainly(model, prompts, eos_token_id=-1, max_new_tokens=31)
    itself = Watched(DraftModel(model, model))
    assert_same(guessed(model, prompts, itself, eos_token_id=-1, max_new_tokens=31), wanted)
    assert itself.passes == 5  # 1 token by the prompt, 6 by each pass
    near = Watched(draft_for(model))
    assert_same(guessed(model, prompts, near, eos_token_id=-1, max_new_tokens=31), wanted)
    assert 5 < near.passes < 30


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7, "top_p": 0.9, "seed": 3}, {"repetition_penalty": 1.3}, {"temperature": 1.0, "min_p": 0.1}],
    ids=["sampled", "penalised", "min-p"],
)
def test_sampled_and_penalised_answers_are_those_of_plain_decoding_by_the_same_seed(options, plainly):
    model, prompts = model_of(token_shift=True, loud=4.0), random_prompts(12)
    wanted = plainly(model, prompts, max_new_tokens=24, **options)
    watched = Watched(DraftModel(model, model))
    assert_same(guessed(model, prompts, watched, max_new_tokens=24, **options), wanted)
    assert watched.passes < 23


@pytest.mark.parametrize("kind", ["llama", "learned"])
@pytest.mark.parametrize("by", ["lookup", "draft"])
def test_the_context_ends_rows_as_in_plain_decoding(kind, by, plainly):
    model = model_of(**KINDS[kind])
    prompts = [prompt_of((list(range(8, 40)) * 4)[:length]) for length in (127, 120, 90, 3)]
    wanted = plainly(model, prompts, eos_token_id=-1, max_new_tokens=60)
    assert [len(row) for row in wanted] == [1, 8, 38, 60]
    proposer = PromptLookup() if by == "lookup" else draft_for(model, **KINDS[kind])
    assert_same(guessed(model, prompts, proposer, eos_token_id=-1, max_new_tokens=60), wanted)


def test_a_draft_with_a_shorter_context_and_another_vocabulary_guesses_as_long_as_it_can(plainly):
    model, prompts = model_of(), random_prompts(6)
    torch.manual_seed(2)
    small = MultimodalModel(ModelConfig(decoder=DecoderConfig(**{**SIZES, "context": 40})), 64, {}).eval()
    wanted = plainly(model, prompts, eos_token_id=-1, max_new_tokens=30)
    for width in (64, 128):
        small = MultimodalModel(ModelConfig(decoder=DecoderConfig(**{**SIZES, "context": 40})), width, {}).eval()
        assert_same(guessed(model, prompts, DraftModel(small, model), eos_token_id=-1, max_new_tokens=30), wanted)
    texts = [Engine(model, Silent(), -1).prefiller.text(one) for one in (prompt_of([9] * 38), prompts[0])]
    for text in texts:
        text.tokens.append(9)
    assert [len(guess) for guess in DraftModel(small, model).propose(texts, 3)] == [0, 3]


def test_guessed_and_plain_requests_of_any_length_share_a_batch_that_they_join_and_leave(plainly):
    model, prompts = model_of(window=1), random_prompts(30)
    wanted = plainly(model, prompts, eos_token_id=-1, max_new_tokens=40)
    engine, draft = Engine(model, Silent(), -1), Watched(DraftModel(model, model))
    kinds = [None, "lookup", "draft"]
    sizes = [1 + 7 * at % 40 for at in range(30)]
    options = [
        GenerateConfig(max_new_tokens=size, speculation=kinds[at % 3], draft_tokens=1 + at % 6)
        for at, size in enumerate(sizes)
    ]
    replies = list(engine.generate(zip(prompts, options, strict=True), 7, draft))
    found = [list(zip(reply.tokens, reply.logprobs, strict=True)) for reply in replies]
    assert_same(found, [row[:size] for row, size in zip(wanted, sizes, strict=True)])
    assert 1 < max(draft.heights) < 7
    assert (engine.running, engine.cache) == ([], None)


def test_pictures_are_seen_by_a_draft_that_has_their_encoder(
    make_assistant: Callable[..., Assistant], conversations, plainly
):
    assistant, blind = make_assistant(), make_assistant(image=None)
    prompts = [assistant.renderer.prompt(one) for one in conversations]
    model, eos_token_id = assistant.model.eval(), assistant.eos_token_id
    wanted = plainly(model, prompts, eos_token_id, max_new_tokens=12)
    same = Watched(DraftModel(model, model))
    assert_same(guessed(model, prompts, same, eos_token_id, max_new_tokens=12), wanted)
    assert same.passes == 2
    unlike = Watched(DraftModel(blind.model, model))
    assert_same(guessed(model, prompts, unlike, eos_token_id, max_new_tokens=12), wanted)


def test_a_draft_of_other_tokens_is_refused_with_one_that_differs(assistant, tokenizer):
    check_draft(assistant.tokenizer, tokenizer)
    with pytest.raises(UserError, match=r"another tokenizer: '<\|new\|>' is \d+ there and absent here"):
        check_draft(tokenizer, tokenizer.extended(["<|new|>"]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 8))
def test_a_look_up_copies_what_followed_the_longest_shared_end_last(text, count):
    found = look_up(text, count)
    for length in (3, 2, 1):
        eos_token_id = text[-length:]
        places = (
            [at for at in range(len(text) - length) if text[at : at + length] == eos_token_id]
            if len(text) > length
            else []
        )
        if places:
            wanted = list(text)
            for step in range(count):
                wanted.append(wanted[places[-1] + length + step])
            assert found == wanted[len(text) :]
            return
    assert found == []


def test_a_pass_that_is_not_a_number_stops_the_decoding(monkeypatch):
    model, prompts = model_of(), random_prompts(2)
    nothing = torch.full((2, 6, VOCAB), float("nan"))
    monkeypatch.setattr("mmgpt.generation.engine.decode_many", lambda *_: nothing)
    with pytest.raises(FloatingPointError, match="diverged"):
        guessed(model, prompts, DraftModel(model, model), eos_token_id=-1)
