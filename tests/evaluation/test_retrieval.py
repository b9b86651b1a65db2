import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgpt.config import UserError
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Sample
from mmgpt.datasets.source import Source, SourceConfig
from mmgpt.evaluation.metrics import recall_at_k
from mmgpt.evaluation.retrieval import retrieval_recall

CONTRASTIVE = {"kind": "contrastive", "modality": "image", "width": 8}
COLOURS = ("red", "lime", "blue", "white", "red", "black", "yellow", "blue", "pink")


class Colours(Source):
    """Pictures of one colour each, with its name; two names come twice."""

    def __init__(self, reply: str = "{}") -> None:
        self.reply = reply
        super().__init__(SourceConfig(), len(COLOURS), "colours")

    def __getitem__(self, index: int) -> Sample:
        picture = Image(PIL.Image.new("RGB", (16, 16), COLOURS[index]))
        reply = Message.of("assistant", self.reply.format(COLOURS[index]))
        return Sample((Message.of("user", picture, "?"), reply), key=f"colours/{index}")


@given(st.integers(0, 1000), st.integers(1, 6))
def test_recall_is_the_share_of_media_with_a_match_among_the_first_k_of_a_sorted_list(seed, k):
    generator = torch.Generator().manual_seed(seed)
    scores_MK = torch.randn(7, 5, generator=generator)
    matches_MK = torch.rand(7, 5, generator=generator) < 0.3
    matches_MK[:, seed % 5] = True
    first = [sorted(range(5), key=lambda text: -row[text])[:k] for row in scores_MK.tolist()]
    hits = [any(matches[text] for text in texts) for matches, texts in zip(matches_MK.tolist(), first, strict=True)]
    assert recall_at_k(scores_MK, matches_MK, k) == pytest.approx(sum(hits) / 7)


def test_a_model_that_scores_all_texts_alike_finds_nothing_until_it_may_look_at_all():
    scores_MK, matches_MK = torch.zeros(4, 3), torch.eye(4, 3).bool() | (torch.arange(4)[:, None] == 3)
    matches_MK[3, 1:] = False
    assert [recall_at_k(scores_MK, matches_MK, k) for k in (1, 2, 3)] == [0.0, 0.0, 1.0]


def test_retrieval_over_a_source_does_not_depend_on_its_batches_and_counts_equal_texts_once(make_bundle):
    bundle = make_bundle(heads=[CONTRASTIVE])
    found = [retrieval_recall(bundle, Colours(), k=(1, 3, 7), batch_size=size) for size in (2, 9)]
    assert found[0] == found[1]
    assert (found[0]["media"], found[0]["texts"], found[0]["recall@7"]) == (9, 7, 1.0)
    assert 0 <= found[0]["recall@1"] <= found[0]["recall@3"] <= 1


def test_retrieval_without_a_head_a_pair_or_a_text_to_look_at_is_refused(make_bundle):
    with pytest.raises(UserError, match="no contrastive head for image; train one"):
        retrieval_recall(make_bundle(), Colours())
    both = make_bundle(audio={"kind": "linear"}, heads=[CONTRASTIVE, {**CONTRASTIVE, "modality": "audio"}])
    with pytest.raises(UserError, match="colours/0: gives no pair of audio and text; name the modality"):
        retrieval_recall(both, Colours(), modality="audio")
    with pytest.raises(UserError, match="colours/0: gives contrastive no pair"):
        retrieval_recall(make_bundle(heads=[CONTRASTIVE]), Colours(" "))
    with pytest.raises(UserError, match="k=0 looks at no text; give 1 or more"):
        retrieval_recall(make_bundle(heads=[CONTRASTIVE]), Colours(), k=(0, 1))
