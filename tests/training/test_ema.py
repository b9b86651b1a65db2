import pytest
import torch
from resuming import assert_same_weights, train_in_two, train_until
from safetensors.torch import load_file
from torch import nn

from mmgpt.config import UserError
from mmgpt.training.ema import EMA
from mmgpt.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_average_has_its_closed_form_and_leaves_out_what_is_frozen():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    seen = [model.weight.detach().clone()]
    average = EMA(model, 0.75)
    for _ in range(4):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        seen.append(model.weight.detach().clone())
        average.update()
    bias = model.bias.detach().clone()
    average.copy_to_model()
    shares = [0.75**4, *(0.25 * 0.75 ** (4 - step) for step in range(1, 5))]
    assert sum(shares) == pytest.approx(1)
    torch.testing.assert_close(model.weight.detach(), sum(s * w for s, w in zip(shares, seen, strict=True)))
    assert torch.equal(model.bias, bias)


@pytest.mark.train
def test_a_run_ends_with_the_average_of_the_weights_after_its_steps(make_recipe, tmp_path):
    options = {"ema": 0.75, "steps": 3, "save_every": 1, "keep_last": 9, "train": ["decoder.*", "adapters.*"]}
    train(make_recipe({"steps": 1}, options), out=tmp_path, device="cpu")
    folders = [tmp_path / "stage0" / "checkpoint-1", *(tmp_path / "stage1" / f"checkpoint-{n}" for n in (1, 2, 3))]
    seen = [load_file(folder / "model.safetensors") for folder in folders]
    final = load_file(tmp_path / "final" / "model.safetensors")
    moved = {name for name in final if not torch.equal(seen[0][name], seen[3][name])}
    assert {"decoder.embedding.weight", "adapters.image.project.0.bias"} <= moved
    for name, weight in final.items():
        average = seen[0][name]
        for step in seen[1:]:
            average = 0.75 * average + 0.25 * step[name]
        torch.testing.assert_close(weight, average, atol=1e-6, rtol=1e-5)
        assert name in moved or torch.equal(weight, seen[0][name])


@pytest.mark.train
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_resumed_is_straight_bit_for_bit(optimizer, make_recipe, tmp_path):
    stage = {"ema": 0.6, "layer_decay": 0.5, "optimizer": {"kind": optimizer, "weight_decay": 0.1}, "save_every": 1}
    recipe = make_recipe({"name": "first", **stage, "train": ["decoder"]}, {"name": "second", **stage})
    train(recipe, out=tmp_path / "straight", device="cpu")
    train_until(3, recipe, "first", out=tmp_path / "broken")
    train_in_two(2, recipe, "second", out=tmp_path / "broken")
    assert_same_weights(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_a_decay_that_averages_nothing_is_refused(decay, make_recipe):
    with pytest.raises(UserError, match=rf"stages.0.ema={decay}: Input should be"):
        make_recipe({"ema": decay})
