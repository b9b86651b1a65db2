import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmgpt.checkpoints import save_load
from mmgpt.checkpoints.golden import golden_logits, make_golden
from mmgpt.checkpoints.save_load import load_bundle, save_bundle
from mmgpt.config import UserError
from mmgpt.datasets.sample import parse_messages
from mmgpt.files import load_weights, save_weights, write_file, write_folder
from mmgpt.inputs.batch import collate

FILE = "model.safetensors"


@pytest.fixture
def saved(make_bundle, tmp_path):
    def save(**options):
        bundle = make_bundle(**options)
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        save_bundle(bundle, folder)
        return bundle, folder

    return save


def edit(folder, change) -> None:
    weights = load_file(folder / FILE)
    change(weights)
    save_file(weights, folder / FILE)


@pytest.mark.parametrize("template", ["plain", "llama3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saved_and_loaded_is_the_same_model(tied, template, saved, scenes):
    bundle, folder = saved(tied=tied, template=template, qk_norm=True)
    loaded = load_bundle(folder, verify=True)
    assert loaded.model.config == bundle.model.config
    assert loaded.template == template
    assert (loaded.model.decoder.head.weight is loaded.model.decoder.embedding.weight) == tied
    rendered = [loaded.renderer.render(sample) for sample in scenes[:2]]
    assert rendered[0].ids == bundle.renderer.render(scenes[0]).ids
    batch = collate(rendered)
    with torch.no_grad():
        ours, theirs = (b.model.decoder.logits(b.model.hidden(batch)) for b in (bundle, loaded))
    torch.testing.assert_close(theirs, ours, atol=0, rtol=0)


def test_a_loaded_model_has_no_weight_left_on_the_meta_device(saved):
    _, folder = saved(position="learned", bias=True, norm="layer")
    model = load_bundle(folder).model
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert not model.training


def test_tied_weights_are_written_once(saved):
    _, folder = saved(tied=True)
    assert "decoder.head.weight" not in load_file(folder / FILE)
    assert "decoder.embedding.weight" in load_file(folder / FILE)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_sharded_weights_come_back(tied, make_bundle, tmp_path, monkeypatch):
    bundle = make_bundle(tied=tied)
    expected = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    save_bundle(bundle, tmp_path)
    (tmp_path / FILE).unlink()
    save_weights(save_load.unique_weights(bundle.model), tmp_path, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in load_weights(tmp_path).values())
    torch.testing.assert_close(dict(load_bundle(tmp_path, verify=True).model.state_dict()), expected, atol=0, rtol=0)
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=rf"{files[1]}: no such file; the checkpoint is incomplete"):
        load_bundle(tmp_path)


def test_missing_unexpected_and_misshapen_weights_stop_with_their_names(saved):
    _, folder = saved()

    def change(weights):
        del weights["decoder.norm.weight"]
        weights["decoder.stray"] = torch.zeros(1)
        weights["decoder.embedding.weight"] = torch.zeros(3, 32)

    edit(folder, change)
    with pytest.raises(UserError) as caught:
        load_bundle(folder)
    told = str(caught.value)
    assert "1 missing: decoder.norm.weight" in told
    assert "1 unexpected: decoder.stray" in told
    assert "1 of another shape: decoder.embedding.weight (3, 32) instead of (400, 32)" in told
    assert str(folder) in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("adapters.image.project.0.bias"), "1 missing: adapters.image.project.0.bias"),
        (lambda w: w.update(extra=torch.zeros(2)), "1 unexpected: extra"),
        (
            lambda w: w.update({"decoder.norm.weight": torch.zeros(31)}),
            r"decoder.norm.weight \(31,\) instead of \(32,\)",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_each_fault_alone_stops_the_load(change, told, saved):
    _, folder = saved()
    edit(folder, change)
    with pytest.raises(UserError, match=told):
        load_bundle(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999], ids=lambda kept: f"kept-{kept}")
def test_truncated_weights_are_refused_with_their_file(kept, saved):
    _, folder = saved()
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(UserError, match=rf"{FILE}: damaged or truncated"):
        load_bundle(folder)


@pytest.mark.parametrize("file", ["config.json", FILE, "tokenizer.json"])
def test_an_absent_file_is_named(file, saved):
    _, folder = saved()
    (folder / file).unlink()
    with pytest.raises(UserError, match=rf"{folder}.*" if file == "config.json" else rf"{file}: no such file"):
        load_bundle(folder)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"model_type": "llama"}'])
def test_a_config_of_another_kind_is_refused(content, saved):
    _, folder = saved()
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json: "):
        load_bundle(folder)


def test_a_tokenizer_of_another_size_is_refused_with_both_sizes(saved):
    _, folder = saved()
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "num_tokens": 401}))
    with pytest.raises(UserError, match="the tokenizer has 400 tokens, the model 401"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "name",
    [
        "decoder.blocks.1.mlp.down.weight",
        "encoders.image.vit.pos_embed",
        "encoders.audio.blocks.0.attention.value.weight",
        "adapters.audio.project.weight",
    ],
)
def test_verifying_the_golden_logits_catches_a_changed_weight(name, saved):
    _, folder = saved(audio={"kind": "linear"})
    edit(folder, lambda weights: weights[name].mul_(1.5))
    load_bundle(folder)
    with pytest.raises(UserError, match=r"golden.json's logits are off by"):
        load_bundle(folder, verify=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image": None}, ["text"]),
        ({}, ["image", "text"]),
        ({"audio": {"kind": "linear"}}, ["image", "audio", "text"]),
        ({"audio": {"kind": "linear"}, "image": None}, ["audio", "text"]),
        ({"audio": {"kind": "linear"}, "context": 15}, ["image", "text"]),  # too few tokens for both
    ],
)
def test_golden_holds_a_medium_of_every_modality_that_fits_and_stays_small(options, expected, saved):
    bundle, folder = saved(**options)
    golden = json.loads((folder / "golden.json").read_text())
    assert [part["type"] for part in golden["messages"][0]["content"]] == expected
    assert (folder / "golden.json").stat().st_size < 20_000
    assert make_golden(bundle) == golden
    load_bundle(folder, verify=True)


def test_a_golden_of_a_picture_alone_verifies_also_where_the_model_hears(saved):
    bundle, folder = saved(audio={"kind": "linear"})
    golden = json.loads((folder / "golden.json").read_text())
    golden["messages"][0]["content"] = [p for p in golden["messages"][0]["content"] if p["type"] != "audio"]
    logits = golden_logits(bundle, parse_messages(golden["messages"]))
    golden |= {"argmax": int(logits.argmax()), "first_logits": logits[:256].tolist()}
    (folder / "golden.json").write_text(json.dumps(golden))
    load_bundle(folder, verify=True)


def test_a_model_is_found_by_its_run_its_final_folder_or_its_newest_checkpoint(saved, tmp_path):
    _, folder = saved()
    run = tmp_path / "run"
    for name in ("align/checkpoint-10", "align/checkpoint-9"):
        (run / name).mkdir(parents=True)
        (run / name / "config.json").write_text("{}")
    assert save_load.find_model(run) == run / "align" / "checkpoint-9"
    folder.rename(run / "final")
    assert save_load.find_model(run) == run / "final"
    assert save_load.find_model(run / "final") == run / "final"
    for absent in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="give a run"):
            save_load.find_model(absent)


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def write(text: str, dies: bool = False):
        def fill(draft):
            (draft / "a").write_text(text)
            if dies:
                raise KeyboardInterrupt

        return fill

    folder = tmp_path / "deep" / "folder"
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, write("half", dies=True))
    assert not folder.exists()
    write_folder(folder, write("one"))
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, write("half", dies=True))
    assert (folder / "a").read_text() == "one"
    write_folder(folder, write("two"))
    assert (folder / "a").read_text() == "two"
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    file = tmp_path / "config.yaml"
    write_file(file, "one: \u00e9\n")
    write_file(file, "two: 2\n")
    assert file.read_text(encoding="utf-8") == "two: 2\n"
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_is_ever_unpickled_to_load_a_model(saved, monkeypatch):
    _, folder = saved()
    monkeypatch.setattr("pickle.Unpickler", lambda *args, **options: pytest.fail("a pickle was read"))
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("a pickle was read"))
    load_bundle(folder, verify=True)
