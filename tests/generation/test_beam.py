from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mmgpt.checkpoints.hf_decoders import decoder_fields, decoder_weights
from mmgpt.config import UserError, build
from mmgpt.generation.beam import beam_search
from mmgpt.generation.decode import decode_one
from mmgpt.generation.sampling import GenerateConfig, make_sampler
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.config import ModelConfig
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.multimodal import MultimodalModel

VOCAB, END = 61, 5
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCAB}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
LENGTHS = (3, 8, 1, 13, 6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, MultimodalModel]:
    """A Llama of transformers and the same model here; the end token is likely enough to close some beams."""
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS, eos_token_id=END)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    config = build(DecoderConfig, decoder_fields(folder), str(folder))
    ours = MultimodalModel(ModelConfig(decoder=config), VOCAB, {}).eval()
    ours.decoder.load_state_dict(decoder_weights(folder, config))
    return theirs, ours


@pytest.fixture
def prompts() -> list[Rendered]:
    texts = [torch.randint(6, VOCAB, (length,)).tolist() for length in LENGTHS]
    return [prompt_of(ids) for ids in texts]


def prompt_of(ids: list[int]) -> Rendered:
    return Rendered(ids, [-100] * len(ids), [0] * len(ids), list(range(len(ids))), [], "p", "")


def searched_by_transformers(
    theirs: Any, prompt: Rendered, penalty: float, count: int, eos_token_id: int = END
) -> list[tuple[list[int], float]]:
    asked = torch.tensor([prompt.ids])
    options = {"num_beams": 4, "length_penalty": penalty, "early_stopping": False, "num_return_sequences": 4}
    out = theirs.generate(
        asked,
        attention_mask=torch.ones_like(asked),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
        eos_token_id=eos_token_id,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    answers = []
    for row, score in zip(out.sequences[:, len(prompt.ids) :].tolist(), out.sequences_scores.tolist(), strict=True):
        answers.append((row[: row.index(eos_token_id) + 1] if eos_token_id in row else row[:count], score))
    return answers


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("count", [1, 4, 20])
def test_beams_are_those_of_transformers_in_a_batch_of_all_lengths(pair, prompts, penalty, count):
    theirs, ours = pair
    options = {"num_beams": 4, "length_penalty": penalty, "max_new_tokens": count}
    found = beam_search(ours, prompts, **options, eos_token_id=END)
    for prompt, beams in zip(prompts, found, strict=True):
        wanted = searched_by_transformers(theirs, prompt, penalty, count)
        assert [list(beam.tokens) for beam in beams] == [tokens for tokens, _ in wanted]
        assert [beam.score for beam in beams] == pytest.approx([score for _, score in wanted], abs=1e-5, rel=1e-6)
        for beam in beams:
            assert sum(beam.logprobs) == pytest.approx(beam.total, abs=1e-4)
            assert beam.score == pytest.approx(beam.total / len(beam.tokens) ** penalty)
    if count == 20 and penalty < 2:  # which favours answers as long as the budget
        assert len({len(beam.tokens) for beams in found for beam in beams}) > 2


def test_a_search_stops_where_that_of_transformers_does_though_a_longer_answer_might_win(pair, monkeypatch):
    theirs, ours = pair
    passes = []
    monkeypatch.setattr("mmgpt.generation.beam.decode_one", lambda *given: passes.append(1) or decode_one(*given))
    options: dict[str, Any] = {"length_penalty": 1.0, "max_new_tokens": 24}
    stopped_early = 0
    for prompt in [prompt_of([first]) for first in range(6, 26)]:
        likely = beam_search(ours, [prompt], num_beams=1, **options, eos_token_id=-1)[0][0].tokens[1]  # ends many beams
        passes.clear()
        beams = beam_search(ours, [prompt], num_beams=4, **options, eos_token_id=likely)[0]
        wanted = searched_by_transformers(theirs, prompt, 1.0, 24, likely)
        assert [list(beam.tokens) for beam in beams] == [tokens for tokens, _ in wanted]
        stopped_early += len(passes) < 23
    assert stopped_early >= 3


def test_one_beam_is_greedy(pair, prompts, decode_plainly):
    _, ours = pair
    samplers = [make_sampler(GenerateConfig(), None, 0, one.ids, END) for one in prompts]
    greedy = decode_plainly(ours, prompts, samplers, END, 16)
    found = beam_search(ours, prompts, num_beams=1, length_penalty=1.0, max_new_tokens=16, eos_token_id=END)
    assert [list(beams[0].tokens) for beams in found] == [[token for token, _ in row] for row in greedy]


def test_more_beams_find_what_is_likelier(pair, prompts):
    _, ours = pair
    options: dict[str, Any] = {"length_penalty": 0.0, "max_new_tokens": 6, "eos_token_id": -1}
    best = [[beams[0].total for beams in beam_search(ours, prompts, num_beams=n, **options)] for n in (1, 12)]
    assert all(few <= many + 1e-5 for few, many in zip(*best, strict=True))
    assert sum(best[1]) > sum(best[0]) + 0.5


def test_beams_end_with_the_context(pair, prompts):
    _, ours = pair
    found = beam_search(ours, prompts, num_beams=3, length_penalty=1.0, max_new_tokens=500, eos_token_id=-1)
    assert [len(beams[0].tokens) for beams in found] == [64 - length for length in LENGTHS]


def test_pictures_are_read_once_for_all_beams(make_assistant: Callable[..., Any], conversations):
    assistant = make_assistant()  # with token shift, whose state follows its beam
    prompts = [assistant.renderer.prompt(one) for one in conversations]
    options: dict[str, Any] = {
        "num_beams": 3,
        "length_penalty": 1.0,
        "max_new_tokens": 8,
        "eos_token_id": assistant.eos_token_id,
    }
    model = assistant.model.eval()
    together = beam_search(model, prompts, **options)
    for prompt, beams in zip(prompts, together, strict=True):
        alone = beam_search(model, [prompt], **options)[0]
        assert [beam.tokens for beam in beams] == [beam.tokens for beam in alone]
        forced = beams[1].tokens
        length = len(prompt.ids) + len(forced)
        labels = [-100] * len(prompt.ids) + list(forced)
        longer = Rendered([*prompt.ids, *forced], labels, [0] * length, list(range(length)), prompt.media, "p", "")
        with torch.no_grad():
            wanted = (-model(collate([longer])).nll_N).tolist()
        assert beams[1].logprobs == pytest.approx(wanted, abs=1e-5)


def test_more_beams_than_a_vocabulary_can_tell_apart_are_refused(pair, prompts):
    with pytest.raises(UserError, match="num_beams=31 is over half of the vocabulary of 61"):
        beam_search(pair[1], prompts, num_beams=31, length_penalty=1.0, max_new_tokens=4, eos_token_id=END)
