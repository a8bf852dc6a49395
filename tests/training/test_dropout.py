"""Dropout of compiled passes on a CPU: its masks, and that compiled code draws and keeps each as it should."""

import copy
import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ddim_hf.training.computation import Computation
from ddim_hf.training.dropout import draw_dropout_fast, draw_kept

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_each_element_is_kept_with_its_probability(p):
    """Within five standard deviations, in each of the four places that share a draw; and of a pair of neighbours, or
    of two masks in turn, both are kept as often as independent ones are."""
    torch.manual_seed(0)
    x = torch.empty(2**20)
    kept, next_kept = draw_kept(x, p), draw_kept(x, p)

    def agrees(sample: torch.Tensor, expected: float) -> bool:
        deviation = math.sqrt(expected * (1 - expected) / sample.numel())
        return abs(sample.double().mean() - expected) < 5 * deviation + 2**-16

    places = kept.view(-1, 4)
    assert all(agrees(places[:, place], 1 - p) for place in range(4))
    assert all(agrees(places[:, place] & places[:, place - 1], (1 - p) ** 2) for place in range(4))
    assert agrees(kept & next_kept, (1 - p) ** 2) and not kept.equal(next_kept)
    torch.manual_seed(0)
    assert draw_kept(x, p).equal(kept)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 4, 5), (1,), (0, 4)])
def test_masks_have_the_shape_and_layout_of_what_they_mask(shape):
    x = torch.zeros(shape)
    layouts = [x, x.transpose(0, -1), x.expand(2, *shape)[..., ::2]]
    layouts += [x.to(memory_format=torch.channels_last)] if x.ndim == 4 else []
    for each in layouts:
        kept = draw_kept(each, 0.5)
        assert kept.shape == each.shape and kept.stride() == torch.empty_like(each).stride()
        torch.library.opcheck(draw_kept, (each, 0.5), test_utils=("test_schema", "test_faketensor"))


class Twice(torch.nn.Module):
    """Two dropouts of one shape, about a convolution; recomputed in the backward pass where that is asked for."""

    def __init__(self, recomputed: bool):
        super().__init__()
        self.recomputed = recomputed
        self.first, self.last = torch.nn.Dropout(0.5), torch.nn.Dropout(0.1)
        self.conv = torch.nn.Conv2d(4, 4, 1)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(self.first(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.body, x, use_reentrant=False) if self.recomputed else self.body(x)


@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_passes_draw_each_mask_once(recomputed):
    """Compiled, the output and the gradients are those of the same forwards module by module from the same seed: the
    backward pass has the forward pass's masks, and no two dropouts share one."""
    torch.manual_seed(0)
    network, x = Twice(recomputed), torch.randn(8, 4, 16, 16).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(network)
    draw_dropout_fast(plain)
    torch._dynamo.reset()
    Computation(network, CPU, channels_last=None, cuda_graphs=True).compile()
    results = []
    for each in (plain, network):
        torch.manual_seed(1)
        output = each(x)
        output.square().sum().backward()
        results.append([output.detach(), each.conv.weight.grad, each.conv.bias.grad])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
    dropped = (results[1][0] == 0).float().mean()
    assert 0.08 < dropped < 0.12


def test_what_is_kept_is_scaled():
    """In training an element is 0 or itself over 1 - p, as torch's dropout has it."""
    network, x = torch.nn.Sequential(torch.nn.Dropout(0.2)), torch.randn(1000)
    draw_dropout_fast(network)
    torch.manual_seed(0)
    kept = draw_kept(x, 0.2)
    torch.manual_seed(0)
    torch.testing.assert_close(network(x), torch.where(kept, x / 0.8, 0.0))


def test_evaluation_drops_nothing():
    """In evaluation and at probability 0 the input itself comes back, and nothing is drawn; at 1 all is dropped."""
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.0))
    draw_dropout_fast(network)
    x, state = torch.randn(4), torch.get_rng_state()
    assert network.eval()(x) is x and network.train()[1](x) is x and torch.get_rng_state().equal(state)
    one = torch.nn.Dropout(1.0)
    draw_dropout_fast(one)
    assert one(x).count_nonzero() == 0
