import yaml

from mmgpt.checkpoints.model_card import add_scores, card_text

FACTS = {"recipe": "tiny", "seed": "3", "stage align": "respond, 10 steps, trains adapters; flickr8k"}


def test_a_card_tells_origin_parts_and_use(make_bundle, tmp_path):
    bundle = make_bundle(audio={"kind": "linear"}, pretrained="org/base")
    text = card_text(bundle.model, FACTS)
    _, matter, body = text.split("---\n", 2)
    assert yaml.safe_load(matter) == {
        "library_name": "mmgpt",
        "pipeline_tag": "any-to-any",
        "tags": ["mmgpt", "image", "audio"],
        "base_model": ["org/base"],
    }
    assert body.startswith("# tiny\n\nReads text, image, audio; answers in text.")
    assert "- **stage align:** respond, 10 steps, trains adapters; flickr8k\n" in body
    count = sum(p.numel() for p in bundle.model.decoder.parameters())
    assert f"| decoder | {count:,} |" in body
    assert 'model.ask(mmgpt.Image("FILE"), mmgpt.Audio("FILE"), "What is this?")' in body


def test_a_folder_that_a_part_began_from_is_not_told(make_bundle, tmp_path):
    assert str(tmp_path) not in card_text(make_bundle(pretrained=str(tmp_path)).model, FACTS)


def test_scores_are_written_at_the_end_in_place_of_earlier_ones(make_bundle, tmp_path):
    file = tmp_path / "README.md"
    add_scores(file, {"easy_vqa": "0"})
    assert not file.exists()
    file.write_text(card_text(make_bundle().model, FACTS))
    before = file.read_text()
    add_scores(file, {"easy_vqa": "11"})
    add_scores(file, {"easy_vqa": "99.5"})
    assert file.read_text() == before + "\n## Scores\n\n| task | score |\n| --- | ---: |\n| easy_vqa | 99.5 |\n"
