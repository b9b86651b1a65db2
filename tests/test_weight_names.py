import pytest
import torch

from mmgpt.config import UserError
from mmgpt.weight_names import Rule, their_name, to_ours, to_theirs

RULES = [
    Rule("wte.weight", "embedding.weight"),
    Rule("h.{}.c_attn.weight", ("blocks.{}.query.weight", "blocks.{}.key.weight", "blocks.{}.value.weight"), True),
    Rule("h.{}.experts.{}.w", "blocks.{}.experts.{}.weight"),
]


def outside():
    return {
        "wte.weight": torch.randn(5, 4),
        "h.0.c_attn.weight": torch.randn(4, 12),
        "h.11.c_attn.weight": torch.randn(4, 12),
        "h.3.experts.7.w": torch.randn(2),
    }


def test_there_and_back_is_bitwise_the_same():
    weights = outside()
    back = to_theirs(to_ours(weights, RULES, "here"), RULES)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


def test_a_joined_and_transposed_weight_is_cut_into_equal_rows():
    weights = outside()
    ours = to_ours(weights, RULES, "here")
    assert torch.equal(ours["blocks.11.key.weight"], weights["h.11.c_attn.weight"][:, 4:8].T)
    assert torch.equal(ours["blocks.3.experts.7.weight"], weights["h.3.experts.7.w"])


def test_a_plain_weight_is_not_copied():
    weights = outside()
    assert to_ours(weights, RULES, "here")["embedding.weight"].data_ptr() == weights["wte.weight"].data_ptr()


def test_unknown_names_are_refused_both_ways_and_ignored_ones_left_out():
    with pytest.raises(UserError, match=r"here: 1 unexpected weights: h.0.bias"):
        to_ours({"h.0.bias": torch.ones(1)}, RULES, "here")
    assert to_ours({"h.0.bias": torch.ones(1)}, RULES, "here", [r"h\.\d+\.bias"]) == {}
    with pytest.raises(UserError, match=r"other.weight: this family has no place"):
        to_theirs({"other.weight": torch.ones(1)}, RULES)
    with pytest.raises(UserError, match=r"stored with blocks.0.key.weight, which is missing"):
        to_theirs({"blocks.0.query.weight": torch.ones(1)}, RULES)


def test_their_name_is_found_by_ours():
    assert their_name("blocks.2.value.weight", RULES) == "h.2.c_attn.weight"
    assert their_name("blocks.2.gate.weight", RULES) is None
