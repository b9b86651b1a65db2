from mmgpt.model.meta import on_meta_device
from mmgpt.model.multimodal import MultimodalModel


def test_a_model_built_without_weights_has_all_shapes_and_draws_no_normal_numbers(make_bundle, monkeypatch):
    model = make_bundle(audio={"kind": "mlp"}).model

    def draw(*_):
        raise AssertionError("torch imports its compiler to draw normal numbers on the meta device")

    monkeypatch.setattr("torch.nn.init._no_grad_normal_", draw)
    with on_meta_device():
        empty = MultimodalModel(model.config, model.vocab_size, model.placeholder_ids)
    assert all(parameter.is_meta for parameter in empty.parameters())
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    assert {name: weight.shape for name, weight in empty.state_dict().items()} == shapes
