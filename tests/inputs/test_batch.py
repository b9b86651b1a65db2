import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mmgpt.inputs.batch import PADDING, collate, collate_packed, pack, split_into_micro_batches
from mmgpt.inputs.rendered import IGNORED, Medium, Rendered


def row(
    length: int, *, branches: list[int] | None = None, source: str = "a", media: tuple[Medium, ...] = ()
) -> Rendered:
    ids = list(range(1, length + 1))
    numbers = branches or [0] * length
    return Rendered(ids, [IGNORED, *ids[1:]], numbers, list(range(length)), list(media), f"{source}/{length}", source)


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(lengths=lengths)
def test_padding_stands_at_the_end_and_is_no_target_and_no_document(lengths):
    batch = collate([row(length) for length in lengths])
    for number, length in enumerate(lengths):
        assert batch.ids[number].tolist() == [*range(1, length + 1), *[0] * (max(lengths) - length)]
        assert (batch.labels[number, length:] == IGNORED).all()
        assert (batch.documents[number, length:] == PADDING).all()
        assert (batch.documents[number, :length] == 0).all()
    assert batch.num_targets == sum(length - 1 for length in lengths)


@given(lengths=lengths, budget=st.integers(1, 60))
def test_groups_hold_every_sample_once_within_the_budget(lengths, budget):
    rows = [row(length) for length in lengths]
    groups = split_into_micro_batches([[one] for one in rows], budget)
    assert sorted(id(one) for group in groups for (one,) in group) == sorted(map(id, rows))
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(one.ids) for (one,) in group) <= budget


@given(context=st.integers(1, 5), sizes=st.lists(st.integers(1, 4), max_size=4), is_causal=st.booleans())
def test_a_token_sees_its_context_and_its_own_branch_up_to_itself(context, sizes, is_causal):
    numbers = [0] * context + [number for number, size in enumerate(sizes, start=1) for _ in range(size)]
    batch = collate([row(len(numbers), branches=numbers), row(3)], "respond" if is_causal else "masked")
    attention_mask = batch.attention_mask()
    if attention_mask is None:
        assert is_causal
        assert not sizes
        return
    for query in range(len(numbers)):
        for key in range(attention_mask.shape[-1]):
            in_row = key < len(numbers)
            in_reach = in_row and (numbers[key] == 0 or numbers[key] == numbers[query]) and key <= query
            assert bool(attention_mask[0, 0, query, key]) == (in_reach if is_causal else in_row)


def test_no_query_is_left_without_a_key_even_in_padding():
    batch = collate([row(6, branches=[0, 0, 1, 1, 2, 2]), row(2)])
    assert batch.attention_mask().any(dim=-1).all()


def test_media_of_all_samples_lie_in_reading_order_padded_at_their_ends():
    def sound(samples: int, value: float) -> Medium:
        return Medium("audio", torch.full((1, samples), value), 2, f"clip {value}")

    picture = Medium("image", torch.ones(3, 4, 4), 4, "red.png")
    batch = collate([row(3, media=(sound(5, 1.0), picture)), row(2, media=(sound(3, 2.0), sound(7, 3.0)))])
    audio = batch.media["audio"]
    assert audio.names == ("a/3: clip 1.0", "a/2: clip 2.0", "a/2: clip 3.0")
    assert audio.shapes.tolist() == [[1, 5], [1, 3], [1, 7]]
    assert audio.values.shape == (3, 1, 7)
    assert audio.values.sum(dim=-1).flatten().tolist() == [5.0, 6.0, 21.0]
    assert batch.media["image"].names == ("a/3: red.png",)


def test_pictures_of_several_shapes_are_padded_at_the_end_of_every_axis():
    shapes = [(3, 4, 6), (3, 8, 2), (3, 2, 2)]
    pictures = [Medium("image", torch.full(shape, 1.0 + at), 4, f"{at}.png") for at, shape in enumerate(shapes)]
    image = collate([row(3, media=pictures[:2]), row(2, media=pictures[2:])]).media["image"]
    assert image.values.shape == (3, 3, 8, 6)
    assert image.sizes() == shapes
    for picture, value in zip(pictures, image.values, strict=True):
        assert torch.equal(value[tuple(map(slice, picture.values.shape))], picture.values)
        assert value.sum() == picture.values.sum()


def test_sources_are_numbered_in_the_order_they_come():
    batch = collate([row(2, source="b"), row(3, source="a"), row(1, source="b")])
    assert batch.source_names == ("b", "a")
    assert batch.sources[:, 0].tolist() == [0, 1, 0]
    assert batch.sources.shape == batch.ids.shape


def test_moving_a_batch_moves_every_tensor_in_it():
    picture = Medium("image", torch.ones(3, 4, 4), 4, "red.png")
    moved = collate([row(3, media=(picture,))]).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    tensors += [moved.media["image"].values, moved.media["image"].shapes]
    assert len(tensors) == 8
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_the_token_before_a_branch_is_the_last_of_its_context(make_bundle, scenes):
    rendered = [make_bundle().renderer.render(sample) for sample in scenes[:3]]
    previous_BT = collate(rendered).previous_index()
    for row, sample in enumerate(rendered):
        context = sample.branches.count(0)
        for at, branch in enumerate(sample.branches):
            starts_a_branch = at > 0 and branch != sample.branches[at - 1]
            assert previous_BT[row, at] == (context - 1 if starts_a_branch else at - 1)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), size=st.integers(5, 60), most=st.none() | st.just(2)
)
def test_packing_lays_every_sample_into_one_row_within_its_tokens_and_media(lengths, size, most):
    picture = Medium("image", torch.ones(1, 1, 1), 1, "red.png")
    samples = [row(length, media=(picture,) * (number % 3)) for number, length in enumerate(lengths)]
    rows = pack(samples, size, most)
    assert sorted(id(one) for packed in rows for one in packed) == sorted(map(id, samples))
    for packed in rows:
        assert len(packed) == 1 or sum(len(one.ids) for one in packed) <= size
        assert most is None or sum(len(one.media) for one in packed) <= most


@given(seed=st.integers(0, 200), count=st.integers(40, 90))
@example(seed=53, count=40)  # a sample of 900 tokens and rows of 846: 94 % is the most
@example(seed=53, count=47)
def test_packed_rows_are_as_full_as_can_be(seed, count):
    lengths = np.random.default_rng(seed).lognormal(4.3, 0.7, count).clip(8, 900).astype(int)  # as those of mixed data
    batch = collate_packed(pack([row(int(length)) for length in lengths], 1000))
    total, least = int(lengths.sum()), -(-int(lengths.sum()) // 1000)
    most = max(total / (rows * max(int(lengths.max()), -(-total // rows))) for rows in range(least, least + 4))
    assert (batch.documents != PADDING).float().mean() >= 0.97 * most


def test_the_number_of_rows_is_the_one_that_leaves_least_padding():
    rows = pack([row(199) for _ in range(41)], 1000)
    assert len(rows) * max(sum(len(one.ids) for one in packed) for packed in rows) == 11 * 4 * 199


def test_groups_of_rows_keep_to_their_media():
    picture = Medium("image", torch.ones(1, 1, 1), 1, "red.png")
    rows = [[row(5, media=(picture,) * count)] for count in (1, 1, 1, 3, 2)]
    groups = split_into_micro_batches(rows, 1000, max_media=2)
    assert [sum(len(one.media) for (one,) in group) for group in groups] == [2, 1, 3, 2]


def test_samples_of_one_row_are_apart_in_documents_positions_and_sources():
    batch = collate_packed([[row(2, source="a"), row(3, source="b", branches=[0, 1, 1])], [row(4, source="a")]])
    assert batch.documents.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, PADDING]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    assert batch.sources.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert batch.previous_index().tolist() == [[-1, 0, -1, 2, 3], [-1, 0, 1, 2, -1]]
    assert not batch.attention_mask()[0, 0, 2:, :2].any()
