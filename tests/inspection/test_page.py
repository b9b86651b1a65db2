import html
import re
from itertools import chain

import numpy as np
import PIL.Image
import pytest

from mmgpt.datasets.media import Audio, Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.encoders.vit import ViTConfig
from mmgpt.inputs.rendered import IGNORED
from mmgpt.inspection.page import prepared_picture, row_blocks, write_data_page
from mmgpt.inspection.recipe_data import open_data

SPAN = re.compile(r'<span class="t( learned)?( special)?" title="([\d ]+)[^"]*">(.*?)</span>', re.DOTALL)


def shown(blocks: list[str]) -> list[tuple[int, bool]]:
    """Ids of the text tokens of a page in order, and which of them are marked as learned."""
    spans = SPAN.findall("".join(blocks))
    return list(chain.from_iterable([(int(i), bool(learned)) for i in ids.split()] for learned, _, ids, _ in spans))


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_marks_are_the_labels_and_every_medium_is_one_chip(template, scenes, make_bundle):
    bundle = make_bundle(template=template)
    slot = bundle.tokenizer.special("<|image|>")
    for sample in scenes:
        rendered = bundle.renderer.render(sample)
        blocks = row_blocks(rendered, bundle.tokenizer)
        expected = [(i, label != IGNORED) for i, label in zip(rendered.ids, rendered.labels, strict=True) if i != slot]
        assert shown(blocks) == expected
        assert "".join(blocks).count('class="chip"') == len(rendered.media) == 1
        assert f"\N{MULTIPLICATION SIGN} {rendered.media[0].num_tokens}<" in blocks[0]
        assert len(blocks) == 1 + len(sample.branches)


def test_pictures_side_by_side_are_a_chip_each(make_bundle):
    bundle = make_bundle()
    picture = Image(np.zeros((8, 8, 3), np.uint8))
    sample = Sample((Message.of("user", picture, picture, "?"), Message.of("assistant", "two")))
    blocks = row_blocks(bundle.renderer.render(sample), bundle.tokenizer)
    assert "".join(blocks).count('class="chip"') == 2


def test_text_is_escaped_and_letters_of_several_tokens_stay_whole(make_bundle):
    bundle = make_bundle()
    said = "<script>alert('\N{SNOWMAN}')</script> <|end|>"
    rendered = bundle.renderer.render(Sample((Message.of("user", "say"), Message.of("assistant", said))))
    page = "".join(row_blocks(rendered, bundle.tokenizer))
    assert "<script" not in page
    assert said in html.unescape("".join(text for _, _, _, text in SPAN.findall(page)))
    assert "\ufffd" not in page


def test_a_hidden_token_tells_what_is_to_be_learned_in_its_place(make_bundle, open_world):
    bundle = make_bundle()
    rendered = bundle.renderer.render(open_world("stories")[0], "masked")
    page = "".join(row_blocks(rendered, bundle.tokenizer))
    hidden = sum(label not in (IGNORED, i) for i, label in zip(rendered.ids, rendered.labels, strict=True))
    assert hidden
    assert page.count("to be learned: ") == hidden


def test_a_prepared_picture_is_the_resized_one_again():
    encoder = ViTConfig(kind="vit", image_size=16, patch_size=4, width=32, depth=1, heads=2)
    picture = PIL.Image.effect_noise((16, 16), 90).convert("RGB")
    assert np.array_equal(prepared_picture(encoder.preprocess(picture)), picture)
    assert prepared_picture(encoder.preprocess(picture)[:2]) is None


def test_the_page_holds_every_source_its_media_and_what_cannot_be_used(make_recipe, tmp_path):
    PIL.Image.effect_noise((40, 30), 90).save(tmp_path / "a.png")
    question = '"content": [{"type": "image", "path": "%s"}, {"type": "text", "text": "<b>bold</b>?"}]'
    answer = '{"role": "assistant", "content": "yes"}'
    lines = [f'{{"messages": [{{"role": "user", {question % name}}}, {answer}]}}\n' for name in ("a.png", "gone.png")]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    rows = {"reader": "messages", "path": "rows.jsonl"}
    world = {"reader": "world", "name": "scenes", "size": 5}
    recipe = make_recipe({"data": [rows, world]}, {"data": [{**rows, "weight": 2}]})
    page = write_data_page(open_data(recipe, data_root=tmp_path), tmp_path / "data.html", limit=3).read_text()
    assert page.count("<section") == 2  # a source of two stages is shown once
    assert page.count("<article") == 2 + 3
    assert "stage0, stage1 \N{MIDDLE DOT} respond \N{MIDDLE DOT} 2 of 2 samples" in page
    assert "enters as 16 \N{MULTIPLICATION SIGN} 16, 4 tokens" in page
    assert "cannot be used: " in page
    assert "gone.png: no such file" in page
    assert "<b>bold" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_a_sound_made_by_a_function_is_playable(make_recipe, tmp_path):
    model = {
        "decoder": {"width": 32, "depth": 1, "heads": 2},
        "encoders": {"audio": {"kind": "conformer", "rate": 8000, "mels": 16, "width": 16, "depth": 1, "heads": 2}},
        "adapters": {"audio": {"kind": "mlp", "stride": 8}},
    }
    data = open_data(make_recipe({"data": [{"reader": "world", "name": "sounds", "size": 1}]}, model=model))
    assert isinstance(data.sources["stage0"][0][0].messages[0].parts[0], Audio)
    page = write_data_page(data, tmp_path / "data.html").read_text()
    assert 'src="data:audio/wav;base64,' in page
    assert 'class="mel"' in page
