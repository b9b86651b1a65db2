import pytest
import torch

from mmgpt.training.muon import Muon, orthogonalise

SHAPES = [(8, 8), (8, 8), (24, 8), (8, 24), (24, 8)]


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_updates_are_those_of_torchs_muon():
    ours, theirs = weights(), weights()
    our = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1)
    their = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="original")
    for step in range(5):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(100 * step + number))
            b.grad = a.grad.clone()
        our.step()
        their.step()
    for a, b, start in zip(ours, theirs, weights(), strict=True):
        torch.testing.assert_close(a, b, atol=0.02 * 5 * 0.02, rtol=0)  # both round to bfloat16, in another order
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


def test_singular_values_come_near_one():
    matrices = torch.randn(3, 20, 12)
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


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
