import pytest
import torch

from mmgpt.training import muon
from mmgpt.training.muon import Muon, orthogonalise

SHAPES = [(8, 8), (8, 8), (24, 8), (8, 24), (24, 8)]
DTYPES = [torch.float32, torch.bfloat16]


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_are_those_of_torchs_muon(dtype):
    ours, theirs = weights(), weights()
    our = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1, dtype=dtype)
    their = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="original")
    for step in range(5):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(100 * step + number))
            b.grad = a.grad.clone()
        our.step()
        their.step()
    for a, b, start in zip(ours, theirs, weights(), strict=True):
        torch.testing.assert_close(a, b, atol=0.02 * 5 * 0.02, rtol=0)  # torch rounds to bfloat16
        assert (a - start).abs().max() > 0.02
        torch.testing.assert_close(our.state[a]["momentum_buffer"], their.state[b]["momentum_buffer"])


def test_a_kernel_is_updated_as_the_matrix_of_its_outputs_by_the_rest():
    generator = torch.Generator().manual_seed(1)
    kernel = torch.nn.Parameter(torch.randn(6, 2, 3, 3, generator=generator))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    our, their = Muon([kernel], weight_decay=0.1), torch.optim.Muon([matrix], lr=0.02, weight_decay=0.1)
    for _ in range(3):
        kernel.grad = torch.randn(kernel.shape, generator=generator)
        matrix.grad = kernel.grad.flatten(1).clone()
        our.step()
        their.step()
    torch.testing.assert_close(kernel.flatten(1), matrix, atol=0.02 * 3 * 0.02, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 20, 12), (3, 12, 20), (2, 12, 60), (2, 60, 12)])
def test_a_matrix_becomes_its_polar_factor(shape, dtype):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    found = torch.einsum("krs,krc,ksc->ks", left, orthogonalise(matrices.to(dtype)).double(), right)
    regular = values > 0.01 * values.norm(dim=-1, keepdim=True)
    assert regular.float().mean() > 0.9
    assert found[regular].min() > (0.67 if dtype == torch.float32 else 0.6)  # bfloat16 rounds the small ones
    assert found[regular].max() < 1.21


def test_iterating_on_gram_matrices_gives_what_iterating_on_the_matrices_gives():
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-3, 0, 24)  # spread as in gradients
    x = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0] * scales @ torch.randn(24, 96, generator=generator)
    x = (x / x.norm())[None]
    torch.testing.assert_close(muon._by_gram(x), muon._by_products(x), atol=2e-3, rtol=0)


def test_a_cpu_orthogonalises_in_float32_whatever_its_units(monkeypatch):
    seen = []
    monkeypatch.setattr(muon, "orthogonalise", lambda x: seen.append(x.dtype) or x)
    for has_units in (True, False):
        monkeypatch.setattr("mmgpt.processor.has_bf16_units", lambda device, answer=has_units: answer)
        parameter = torch.nn.Parameter(torch.ones(4, 4))
        parameter.grad = torch.eye(4)
        Muon([parameter]).step()
        assert seen.pop() == torch.float32


def test_with_an_interval_of_one_each_matrix_moves_at_each_step_and_of_two_in_turns_twice_as_far():
    def moved(interval: int) -> list[list[float]]:
        params = [torch.nn.Parameter(torch.eye(4)), torch.nn.Parameter(torch.eye(4, 6))]
        optimizer, steps = Muon(params, lr=0.1, interval=interval, dtype=torch.float32), []
        for _ in range(4):
            before = [p.detach().clone() for p in params]
            for p in params:
                p.grad = torch.eye(*p.shape)
            optimizer.step()
            steps.append([round((p - b).norm().item(), 4) for p, b in zip(params, before, strict=True)])
        return steps

    far = moved(1)[0]
    assert moved(1) == [far] * 4
    assert moved(2) == [[2 * far[0], 0], [0, 2 * far[1]]] * 2


def test_an_update_after_an_interval_counts_the_gradients_between():
    """The mean of all gradients, Nesterov's way, as if two steps without an update stood before the one with it."""
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(6, 6, generator=generator) for _ in range(3)]
    matrix = torch.nn.Parameter(torch.zeros(6, 6))
    optimizer = Muon([matrix], lr=0.5, momentum=0.9, interval=2, dtype=torch.float32)
    for gradient in gradients:
        before = matrix.detach().clone()
        matrix.grad = gradient.clone()
        optimizer.step()
    mean = 0.1 * (0.81 * gradients[0] + 0.9 * gradients[1] + gradients[2])
    expected = orthogonalise((0.1 * gradients[2] + 0.9 * mean)[None])[0]
    torch.testing.assert_close(matrix.detach() - before, -expected, atol=1e-5, rtol=0)


def test_a_matrix_without_a_gradient_stays_and_keeps_no_state():
    one, other = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    one.grad = torch.eye(4)
    optimizer = Muon([one, other], weight_decay=0.5)
    optimizer.step()
    assert torch.equal(other, torch.ones(4, 4))
    assert other not in optimizer.state
    assert not torch.equal(one, torch.ones(4, 4))


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"1 parameters are none, the first of shape \(4,\)"):
        Muon([torch.nn.Parameter(torch.ones(4))])
