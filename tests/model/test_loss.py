import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgpt.model import loss as loss_module
from mmgpt.model.loss import chunked_cross_entropy

N, D, V = 23, 16, 50


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    hidden_ND = torch.randn(N, D, requires_grad=True)
    weight_VD = torch.randn(V, D, requires_grad=True)
    return hidden_ND, weight_VD, torch.randint(V, (N,))


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("chunk_logits", [1, V, 3 * V, 7 * V + 1, N * V, 10 * N * V])
def test_chunked_loss_and_both_gradients_are_those_of_torch(chunk_logits, softcap, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk_logits)
    hidden_ND, weight_VD, targets_N = tensors()
    total, nll_N, _ = chunked_cross_entropy(hidden_ND, weight_VD, targets_N, softcap)
    (0.37 * total).backward()
    ours = total.detach(), hidden_ND.grad, weight_VD.grad
    hidden_ND.grad = weight_VD.grad = None
    logits_NV = hidden_ND @ weight_VD.T
    logits_NV = logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
    theirs_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    (0.37 * theirs_N.sum()).backward()
    torch.testing.assert_close(nll_N, theirs_N.detach(), atol=1e-5, rtol=1e-5)
    expected = theirs_N.sum().detach(), hidden_ND.grad, weight_VD.grad
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient_and_the_other_side_the_same_one(frozen):
    hidden_ND, weight_VD, targets_N = tensors()
    F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum").backward()
    expected = weight_VD.grad if frozen == "hidden" else hidden_ND.grad
    hidden, weight = hidden_ND.detach(), weight_VD.detach()
    learning = (weight if frozen == "hidden" else hidden).requires_grad_()
    chunked_cross_entropy(hidden, weight, targets_N)[0].backward()
    torch.testing.assert_close(learning.grad, expected, atol=1e-5, rtol=1e-5)
    assert (hidden if frozen == "hidden" else weight).grad is None


def test_very_large_logits_stay_finite():
    hidden_ND, weight_VD, targets_N = tensors()
    total, *_ = chunked_cross_entropy(hidden_ND * 1e4, weight_VD, targets_N)
    total.backward()
    theirs = F.cross_entropy((hidden_ND * 1e4) @ weight_VD.T, targets_N, reduction="sum")
    torch.testing.assert_close(total, theirs, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(hidden_ND.grad).all()


def test_a_batch_without_targets_has_loss_zero_and_zero_gradients():
    hidden_ND, weight_VD, targets_N = tensors()
    total, nll_N, _ = chunked_cross_entropy(hidden_ND[:0], weight_VD, targets_N[:0])
    total.backward()
    assert total.item() == 0.0
    assert len(nll_N) == 0
    assert not weight_VD.grad.any()


def test_under_autocast_the_loss_stays_within_bf16_of_the_exact_one():
    hidden_ND, weight_VD, targets_N = tensors()
    exact = F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, nll_N, _ = chunked_cross_entropy(hidden_ND, weight_VD, targets_N)
    total.backward()
    assert nll_N.dtype == torch.float32
    assert hidden_ND.grad.dtype == weight_VD.grad.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=0.02, atol=0.5)
