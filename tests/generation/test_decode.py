import pytest
import torch
import transformers
from torch import Tensor, nn

from mmgpt.generation.assistant import Assistant
from mmgpt.generation.decode import Reply, cut_at, decode_one, prefill
from mmgpt.generation.engine import Engine
from mmgpt.generation.sampling import GenerateConfig
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import Rendered
from mmgpt.model.config import ModelConfig
from mmgpt.model.layers import DecoderConfig
from mmgpt.model.multimodal import MultimodalModel

NO_END = -1
LLAMA_NAMES = {
    "model.embed_tokens.": "decoder.embedding.",
    "model.layers.": "decoder.blocks.",
    "model.norm.": "decoder.norm.",
    "lm_head.": "decoder.head.",
    "self_attn.q_proj.": "attention.query.",
    "self_attn.k_proj.": "attention.key.",
    "self_attn.v_proj.": "attention.value.",
    "self_attn.o_proj.": "attention.out.",
    "input_layernorm.": "attention_norm.",
    "post_attention_layernorm.": "mlp_norm.",
    "gate_proj.": "gate.",
    "up_proj.": "up.",
    "down_proj.": "down.",
}


def prompt_of(ids: list[int]) -> Rendered:
    return Rendered(ids, [-100] * len(ids), [0] * len(ids), list(range(len(ids))), [], "prompt", "")


def extended(prompt: Rendered, ids: list[int]) -> Rendered:
    longer = prompt_of([*prompt.ids, *ids])
    return Rendered(longer.ids, longer.labels, longer.branches, longer.positions, prompt.media, prompt.key, "")


@torch.no_grad()
def full_pass(model: MultimodalModel, prompt: Rendered) -> Tensor:
    """Logits of every position, without a cache and without other rows."""
    return model.decoder.logits(model.hidden(collate([prompt])))[0]


def rendered(assistant: Assistant, conversations) -> list[Rendered]:
    return [assistant.renderer.prompt(one) for one in conversations]


def answers(assistant: Assistant, prompts: list[Rendered], end: int = NO_END, **options) -> list[Reply]:
    engine = Engine(assistant.model, assistant.tokenizer, end)
    return list(engine.generate([(one, GenerateConfig(**options)) for one in prompts], len(prompts)))


def summary(replies: list[Reply]) -> list[tuple[str, list[int], str]]:
    return [(reply.text, reply.tokens, reply.finish_reason) for reply in replies]


def stop_string(assistant: Assistant, replies: list[Reply]) -> tuple[int, str]:
    """A row, and three characters from the middle of its text alone that no single token holds."""
    for row, reply in enumerate(replies):
        pieces = [assistant.tokenizer.decode([token]) for token in reply.tokens]
        others = [other.text for other in replies if other is not reply]
        for at in range(8, len(reply.text) - 12):
            stop = reply.text[at : at + 3]
            if "\ufffd" not in stop and not any(stop in text for text in [*pieces, *others]):
                return row, stop
    raise AssertionError("no text has a piece of its own")


@pytest.mark.parametrize(
    "decoder",
    [{}, {"position": "learned", "norm": "layer", "mlp": "gelu"}, {"qk_norm": True, "kv_heads": 1, "mlp": "relu2"}],
    ids=["llama", "gpt2", "qk-norm"],
)
def test_cached_decoding_gives_the_logits_of_one_full_pass(decoder, make_assistant, conversations):
    assistant = make_assistant(**decoder)
    model, prompts = assistant.model.eval(), rendered(assistant, conversations)
    assert len({len(prompt.ids) for prompt in prompts}) > 3
    assert {len(prompt.media) for prompt in prompts} == {0, 1, 2}
    forced = torch.randint(20, 300, (6, len(prompts)))
    cache, logits_BV = prefill(model, prompts, len(forced))
    for step in range(len(forced) + 1):
        for row, prompt in enumerate(prompts):
            alone = full_pass(model, extended(prompt, forced[:step, row].tolist()))[-1]
            torch.testing.assert_close(logits_BV[row], alone, atol=1e-5, rtol=1e-5)
        if step < len(forced):
            logits_BV = decode_one(model, cache, forced[step])


def test_greedy_answers_do_not_depend_on_the_batch_or_its_order(assistant, conversations):
    prompts = rendered(assistant, conversations)
    alone = [answers(assistant, [prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert len({reply.text for reply in alone}) == len(prompts)
    together = answers(assistant, prompts, max_new_tokens=12)
    backwards = answers(assistant, prompts[::-1], max_new_tokens=12)[::-1]
    assert summary(alone) == summary(together) == summary(backwards)
    for one, other in zip(alone, together, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_reply_s_logprobs_are_those_of_a_full_pass(assistant, conversations):
    prompt = rendered(assistant, conversations)[3]
    reply = answers(assistant, [prompt], max_new_tokens=8, temperature=1.5, top_k=50)[0]
    logits_TV = full_pass(assistant.model, extended(prompt, reply.tokens))[len(prompt.ids) - 1 : -1]
    wanted = logits_TV.log_softmax(dim=-1)[range(8), reply.tokens]
    assert reply.logprobs == pytest.approx(wanted.tolist(), abs=1e-5)


def test_rows_that_end_leave_the_cache_and_do_not_disturb_the_others(assistant, conversations, monkeypatch):
    prompts = rendered(assistant, conversations)
    free = answers(assistant, prompts, max_new_tokens=12)
    end = free[1].tokens[4]
    shortened = [reply.tokens[: reply.tokens.index(end) + 1 if end in reply.tokens else 12] for reply in free]
    assert len(shortened[1]) <= 5
    assert max(map(len, shortened)) == 12
    heights = []
    original = decode_one

    def watched(model, cache, ids_B):
        heights.append((len(ids_B), cache.rows))
        return original(model, cache, ids_B)

    monkeypatch.setattr("mmgpt.generation.engine.decode_one", watched)
    replies = answers(assistant, prompts, end, max_new_tokens=12)
    assert [reply.tokens for reply in replies] == shortened
    running = [sum(len(tokens) > step and tokens[step - 1] != end for tokens in shortened) for step in range(1, 12)]
    assert [rows for rows, _ in heights][: len(running)] == running
    assert all(rows == stored for rows, stored in heights)


def test_nothing_is_decoded_after_the_last_token(assistant, conversations, monkeypatch):
    calls = []
    original = decode_one
    monkeypatch.setattr("mmgpt.generation.engine.decode_one", lambda *given: calls.append(1) or original(*given))
    answers(assistant, rendered(assistant, conversations), max_new_tokens=5)
    assert len(calls) == 4


def test_the_budget_of_new_tokens_ends_a_reply_with_reason_length(assistant, conversations):
    replies = answers(assistant, rendered(assistant, conversations), max_new_tokens=7)
    assert [(len(reply.tokens), reply.finish_reason) for reply in replies] == [(7, "length")] * len(replies)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_the_end_of_the_context_ends_a_reply_with_reason_length_alone_as_in_a_batch(position, make_assistant):
    assistant = make_assistant(position=position, context=40)
    prompts = [prompt_of(torch.randint(20, 300, (length,)).tolist()) for length in (5, 20, 39)]
    together = answers(assistant, prompts, max_new_tokens=64)
    alone = [answers(assistant, [prompt], max_new_tokens=64)[0] for prompt in prompts]
    assert [(len(reply.tokens), reply.finish_reason) for reply in alone] == [
        (35, "length"),
        (20, "length"),
        (1, "length"),
    ]
    assert summary(together) == summary(alone)


def test_the_end_token_stops_a_reply_and_is_not_in_its_text(assistant, conversations):
    prompts = rendered(assistant, conversations)
    end = assistant.eos_token_id
    ids = [int(i) for i in assistant.tokenizer.encode("a blue circle")]
    steps = iter([*ids, end])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmgpt.generation.engine.sample_tokens", lambda *_: torch.tensor([next(steps)]))
        reply = answers(assistant, prompts[:1], end, max_new_tokens=64)[0]
    assert (reply.text, reply.tokens, reply.finish_reason) == ("a blue circle", [*ids, end], "stop")
    assert len(reply.logprobs) == len(reply.tokens)


def test_a_stop_string_across_tokens_ends_its_row_alone_and_is_cut_off(assistant, conversations):
    prompts = rendered(assistant, conversations)
    free = answers(assistant, prompts, max_new_tokens=24)
    row, stop = stop_string(assistant, free)
    stopped = answers(assistant, prompts, max_new_tokens=24, stop=("not there at all", stop))
    assert stopped[row].finish_reason == "stop"
    assert stopped[row].text == free[row].text[: free[row].text.index(stop)]
    assert len(stopped[row].tokens) < 24
    del stopped[row], free[row]
    assert summary(stopped) == summary(free)


def test_the_first_of_several_stop_strings_cuts():
    assert cut_at("one two three", ["three", "two"]) == 4
    assert cut_at("one two three", ["four"]) is None
    assert cut_at("one", []) is None


def test_logits_that_are_not_numbers_stop_the_decoding(assistant, conversations):
    with torch.no_grad():
        assistant.model.decoder.head.weight[3, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        answers(assistant, rendered(assistant, conversations))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_greedy_decoding_gives_the_tokens_of_transformers_generate(kv_heads, tokenizer):
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 97}
    heads = {"num_attention_heads": 4, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.3)
    config = DecoderConfig(width=48, depth=2, heads=4, kv_heads=kv_heads, ffn_width=80, norm_eps=1e-5, context=64)
    ours = MultimodalModel(ModelConfig(decoder=config), 97, {}).eval()
    weights = {}
    for name, weight in theirs.state_dict().items():
        for old, new in LLAMA_NAMES.items():
            name = name.replace(old, new)
        weights[name] = weight
    ours.load_state_dict(weights)
    prompts = [torch.randint(97, (length,)).tolist() for length in (3, 8, 1, 13)]
    wanted = []
    for ids in prompts:
        asked = torch.tensor([ids])
        out = theirs.generate(asked, do_sample=False, max_new_tokens=24, eos_token_id=5, pad_token_id=0)
        wanted.append(out[0, len(ids) :].tolist())
    asked = [(prompt_of(ids), GenerateConfig(max_new_tokens=24)) for ids in prompts]
    replies = Engine(ours, tokenizer, 5).generate(asked, len(asked))
    found = [reply.tokens for reply in replies]
    assert found == wanted
    assert len({token for row in found for token in row}) > 20
