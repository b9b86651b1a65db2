import pytest
import torch
from resuming import assert_same_weights, train_in_two
from torch import nn

from mmgpt.checkpoints.save_load import load_bundle, save_bundle
from mmgpt.config import UserError
from mmgpt.files import write_folder
from mmgpt.inputs.batch import collate
from mmgpt.inputs.rendered import IGNORED, Rendered
from mmgpt.model import loss as loss_module
from mmgpt.model.bundle import new_bundle
from mmgpt.model.loss import TeacherTargets, chunked_cross_entropy
from mmgpt.run_log import read_log
from mmgpt.training.distill import DistillConfig, Teacher, open_teachers
from mmgpt.training.loop import train
from mmgpt.training.optim import make_optimizers
from mmgpt.training.recipe import StageConfig
from mmgpt.training.step import train_step

WEIGHT, TEMPERATURE = 0.3, 2.5


pytestmark = pytest.mark.usefixtures("one_thread")


def written_out(student_NV, teacher_NV, targets_N):
    """The loss as the paper has it, by autograd."""
    nll = nn.functional.cross_entropy(student_NV, targets_N, reduction="sum")
    ours, theirs = student_NV.div(TEMPERATURE).log_softmax(1), teacher_NV.div(TEMPERATURE).log_softmax(1)
    divergence = nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    return (1 - WEIGHT) * nll + WEIGHT * TEMPERATURE**2 * divergence


@pytest.mark.parametrize("caps", [(None, None), (3.0, 2.0)], ids=["plain", "capped"])
@pytest.mark.parametrize("chunk", [1 << 22, 64], ids=["whole", "chunks"])
def test_loss_and_gradients_are_those_of_the_formula(caps, chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk)
    hidden, weight = torch.randn(7, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    their_hidden, their_weight = torch.randn(7, 12), torch.randn(24, 12)  # padded otherwise; 18 are tokens
    targets = torch.randint(0, 18, (7,))
    teacher = TeacherTargets(their_hidden, their_weight, caps[1], 18, WEIGHT, TEMPERATURE)
    total, nll, distilled = chunked_cross_entropy(hidden, weight, targets, caps[0], teacher)
    (total / 3).backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None

    def logits(hidden, weight, softcap):
        return hidden @ weight.T if softcap is None else softcap * torch.tanh(hidden @ weight.T / softcap)

    student, teacher = logits(hidden, weight, caps[0]), logits(their_hidden, their_weight, caps[1])
    nll_expected = nn.functional.cross_entropy(student, targets, reduction="none")
    both = student[:, :18].div(TEMPERATURE).log_softmax(1), teacher[:, :18].div(TEMPERATURE).log_softmax(1)
    kl = nn.functional.kl_div(*both, reduction="none", log_target=True).sum(1) * TEMPERATURE**2
    expected = (1 - WEIGHT) * nll_expected.sum() + WEIGHT * kl.sum()
    (expected / 3).backward()
    torch.testing.assert_close((total, nll, distilled), (expected, nll_expected, kl), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, (hidden.grad, weight.grad), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_a_model_learns_by_the_formula_however_its_batch_is_split(count, make_bundle, scenes):
    student, other = make_bundle(), make_bundle(width=48, depth=3)
    nn.init.normal_(other.model.decoder.head.weight, std=0.5)
    rendered = [one.renderer.render(sample) for one, sample in zip([student] * 3, scenes, strict=False)]
    teacher = Teacher(other.model.eval(), DistillConfig(weight=WEIGHT, temperature=TEMPERATURE), len(other.tokenizer))
    whole = collate(rendered)
    batches = [whole] if count == 1 else [collate([one]) for one in rendered]
    is_target = whole.labels[:, 1:] != -100
    student.model.train()
    student_NV, teacher_NV = (
        one.model.decoder.logits(one.model.hidden(whole))[:, :-1][is_target] for one in (student, other)
    )
    expected = written_out(student_NV, teacher_NV.detach(), whole.labels[:, 1:][is_target]) / whole.num_targets
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    slopes = torch.autograd.grad(expected, list(student.model.parameters()), allow_unused=True)
    stage = StageConfig(
        name="s",
        data=[{"reader": "world", "name": "scenes"}],
        steps=1,
        learning_rate=1.0,
        optimizer={"kind": "sgd", "momentum": 0},
    )
    stats = train_step(student.model, make_optimizers(student.model, stage), batches, max_norm=1e9, teacher=teacher)
    assert stats.loss == pytest.approx(expected.item(), abs=1e-5)
    nll = stats.source_losses["scenes"]
    assert stats.loss == pytest.approx((1 - WEIGHT) * nll + WEIGHT * stats.head_losses["distill"], abs=1e-5)
    for (name, now), slope in zip(student.model.named_parameters(), slopes, strict=True):
        if slope is not None:
            torch.testing.assert_close(before[name] - now.detach(), slope, atol=2e-5, rtol=1e-4, msg=name)


def bundle_at(folder, bundle):
    write_folder(folder, lambda draft: save_bundle(bundle, draft))
    return str(folder)


@pytest.fixture(scope="module")
def teacher_run(make_recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    return train(make_recipe(), out=run, device="cpu").folder


def recipe_of(make_recipe, teacher, stage=None, **changes):
    changes = {"tokenizer": {"path": str(teacher / "final")}, **changes}
    return make_recipe({"teacher": str(teacher), "distill": {"weight": 0.5}, **(stage or {})}, **changes)


def weights_of(run):
    return load_bundle(run.folder).model.state_dict()


def test_a_weight_of_zero_trains_bitwise_as_without_a_teacher(make_recipe, teacher_run, tmp_path):
    with_one = recipe_of(make_recipe, teacher_run, {"distill": {"weight": 0.0}})
    without = recipe_of(make_recipe, teacher_run, {"teacher": None, "distill": {}})
    half = recipe_of(make_recipe, teacher_run)
    one, other, taught = (
        weights_of(train(recipe, out=tmp_path / str(n), device="cpu"))
        for n, recipe in enumerate((with_one, without, half))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["decoder.blocks.0.mlp.up.weight"], taught["decoder.blocks.0.mlp.up.weight"])


def test_a_stage_with_a_teacher_goes_on_bitwise_and_logs_what_it_learns_from_it(make_recipe, teacher_run, tmp_path):
    recipe = recipe_of(make_recipe, teacher_run, {"save_every": 2})
    straight = train(recipe, out=tmp_path / "straight", device="cpu")
    train_in_two(3, recipe, out=tmp_path / "stopped")
    assert_same_weights(straight.folder, tmp_path / "stopped")
    told = [record for record in read_log(straight.folder / "log.jsonl") if "loss/distill" in record]
    assert [record["step"] for record in told] == [1, 2, 3, 4]
    for record in told:
        assert record["loss"] == pytest.approx(0.5 * record["loss/scenes"] + 0.5 * record["loss/distill"], abs=1e-5)


def test_a_teacher_that_reads_otherwise_is_refused_with_how(make_bundle, tmp_path):
    def refused(student, **teacher):
        path = bundle_at(tmp_path / "teacher", make_bundle(**teacher))
        with pytest.raises(UserError) as error:
            open_teachers({"a": (path, DistillConfig())}, student)
        return str(error.value)

    plain = make_bundle()
    assert "its template is 'chatml', the student's 'plain'" in refused(plain, template="chatml")
    assert "has no encoder for image" in refused(plain, image=None)
    assert "reads 64 tokens, the student 320" in refused(plain, context=64)
    assert "prepares image otherwise than the student ((3, 32, 32) and (3, 16, 16)" in refused(
        plain, image={"image_size": 32}
    )
    assert "takes 1 tokens for image, the student 4" in refused(plain, adapter={"kind": "fold", "stride": 4})
    longer = new_bundle(plain.model.config, plain.tokenizer.extended(["<|more|>"]), "plain")
    here = len(plain.tokenizer)
    assert f"{here} tokens, the student's {here + 1}; token {here} is None there, '<|more|>' here" in refused(longer)
    wrapped = make_bundle()
    wrapped.media_markup = {"image": ("<", ">")}
    assert "its media_markup is {}, the student's {'image'" in refused(wrapped)
    path = bundle_at(tmp_path / "wider", make_bundle(width=64, image={"width": 48, "depth": 2}))
    assert open_teachers({"a": ("nowhere", DistillConfig(weight=0.0))}, plain) == {}
    teachers = {"a": (path, DistillConfig()), "b": (path, DistillConfig(weight=0.0)), "c": (path, DistillConfig())}
    opened = open_teachers(teachers, plain)
    assert opened["a"].model is opened["c"].model  # loaded once
    assert list(opened) == ["a", "c"]


def test_a_teacher_that_is_not_there_is_told_before_training(make_recipe, teacher_run, tmp_path):
    recipe = recipe_of(make_recipe, teacher_run, {"teacher": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="nowhere: no such folder"):
        train(recipe, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "stage0").exists()


def test_a_recipe_says_what_a_teacher_is_for(make_recipe):
    with pytest.raises(UserError, match="distill is given and no teacher"):
        make_recipe({"distill": {"weight": 0.2}})
    with pytest.raises(UserError, match="is for objectives of tokens, this is contrastive"):
        make_recipe({"teacher": "x", "objective": "contrastive"})


@pytest.mark.train
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_small_student_learns_more_from_a_trained_teacher_than_from_labels_alone(seed, make_bundle):
    """Texts are chains of chance: a label tells one token that may follow, a teacher how likely each is."""
    chances = (3 * torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))).softmax(1)
    begin = 40  # ids past the tokenizer's special ones

    def chain(rows, draws):
        tokens = torch.randint(0, 32, (rows, 1), generator=draws)
        for _ in range(11):
            tokens = torch.cat((tokens, chances[tokens[:, -1]].multinomial(1, generator=draws)), dim=1)
        texts = (tokens + begin).tolist()
        return collate([Rendered(t, [IGNORED, *t[1:]], [0] * 12, list(range(12)), [], "chain", "k") for t in texts])

    def learn(model, steps, rows, teacher=None):
        stage = StageConfig(name="s", data=[{"reader": "world", "name": "scenes"}], steps=1, learning_rate=3e-3)
        optimizers, draws = make_optimizers(model, stage), torch.Generator().manual_seed(seed + 10)
        for _ in range(steps):
            train_step(model, optimizers, [chain(rows, draws)], max_norm=1.0, teacher=teacher)
        return model.eval()

    def nats(model):
        batch = chain(400, torch.Generator().manual_seed(99))
        with torch.no_grad():
            return float(model(batch).total) / batch.num_targets

    expert = learn(make_bundle(image=None, width=64, token_shift=False).model, 150, 32)
    taught, alone = (make_bundle(image=None, width=32, depth=1, token_shift=False).model for _ in range(2))
    teacher = Teacher(expert, DistillConfig(weight=0.9, temperature=1.0), taught.vocab_size)
    with_teacher, without = nats(learn(taught, 100, 2, teacher)), nats(learn(alone, 100, 2))
    assert nats(expert) < with_teacher < without - 0.15
