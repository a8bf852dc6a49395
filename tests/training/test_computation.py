"""--compile auto: what its trial chooses and says, that it leaves the run alone, and that compiled passes are the same
mathematics."""

import copy
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from conftest import tiny_unet
from training_runs import ROOT, config, difference, save_tiny_model, tensors

from ddim_hf.training import train
from ddim_hf.training.computation import Choice, Computation, place

SHORT = dict(max_train_steps=4, lr_scheduler="constant", checkpointing_steps=2)
CPU = torch.device("cpu")


def test_a_trial_leaves_the_run_alone(tmp_path, monkeypatch, capsys):
    """A run whose trial chose not to compile has, bit for bit, the weights, moments and averages of one without a
    trial, begun and resumed; it says what it chose and why, and a resumed run keeps the choice."""
    model = save_tiny_model(tmp_path / "model", dropout=0.2)
    plain = train(config(model, tmp_path / "plain", **SHORT))
    monkeypatch.setattr("ddim_hf.training.computation.LEAST_GAIN", math.inf)
    with torch._dynamo.config.patch(disable=True):  # compiling takes a minute
        folder = train(config(model, tmp_path / "run", compile="auto", **SHORT))
        assert "compile auto: not compiled, as compiled passes were " in capsys.readouterr().out
        assert difference(tensors(folder / "checkpoint-4"), tensors(plain / "checkpoint-4")) == 0
        (folder / "checkpoint-4").rename(tmp_path / "aside")
        train(config(model, folder, compile="auto", resume_from_checkpoint="latest", **SHORT))
    assert "in this run's trial, whose choice is kept" in capsys.readouterr().out
    assert difference(tensors(folder / "checkpoint-4"), tensors(plain / "checkpoint-4")) == 0
    choice = json.loads((folder / "checkpoint-4/state.json").read_text())["computation"]
    assert choice["place"] == place(16) and choice["gain"] > 0


def choose(plain: float, compiled: float, **more) -> tuple[Computation, str]:
    """The choice between passes of so many seconds, none of which is computed."""
    computation = Computation(tiny_unet(), CPU, channels_last=None, cuda_graphs=True)

    def one_pass():
        time.sleep(compiled if computation.unet._compiled_call_impl else plain)

    return computation, computation.choose(one_pass, "here", float, **more)


def is_compiled(computation: Computation) -> bool:
    """Whether all that compiling changes is changed; an error where some of it is and some is not."""
    unet = computation.unet
    (changed,) = {
        unet._compiled_call_impl is not None,
        "forward" in vars(unet.conv_norm_out),
        "forward" in vars(unet.mid_block.resnets[0].dropout),
        unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last),
        computation.memory_format == torch.channels_last,
    }
    return changed


def test_the_faster_way_is_chosen():
    """Compiled passes are taken where they are faster and else undone whole; the sentence has the seconds of both."""
    computation, said = choose(plain=0.1, compiled=0.01)
    assert is_compiled(computation)
    assert re.match(r"compile auto: compiled, as compiled passes were [\d.]+ times as fast: a pass took 0\.0", said)
    computation, said = choose(plain=0.01, compiled=0.1)
    assert not is_compiled(computation)
    assert re.match(r"compile auto: not compiled, .* 0\.\d+ times .* took 0\.[\d]+ s, and 0\.0\d+ s module", said)


def test_a_choice_is_kept_where_it_was_made():
    """A resumed run keeps its choice against the clock, on the machine of the trial alone, and says either."""
    for gain in (2.0, 0.5, 0.0):
        computation, said = choose(plain=9, compiled=9, before=Choice(gain, "here"))
        assert is_compiled(computation) == (gain > 1) and said.endswith("whose choice is kept")
    computation, said = choose(plain=0.1, compiled=0.01, before=Choice(0.5, "there"))
    assert is_compiled(computation) and computation.choice.place == "here"
    assert said.endswith("tried anew, as the checkpoint is of there")


def test_a_failing_compiler_leaves_the_passes_as_they_are():
    """Where compiling fails the run goes on module by module, and the reason is said."""
    torch._dynamo.reset()
    computation = Computation(tiny_unet(), CPU, channels_last=None, cuda_graphs=True)

    def one_pass():
        if computation.unet._compiled_call_impl:
            torch.compile(torch.sin)(torch.ones(3))

    with torch._inductor.config.patch({"cpp.cxx": ("/no/compiler",)}), torch._inductor.utils.fresh_cache():
        said = computation.choose(one_pass, "here", float)
    assert said.startswith("compile auto: not compiled, as that failed (") and "\n" not in said
    assert not is_compiled(computation) and computation.choice == Choice(0.0, "here")


def gradients(predict: Callable, network: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    (predict(x) - x).square().mean().backward()
    return {name: parameter.grad.double() for name, parameter in network.named_parameters()}


def test_its_forwards_are_the_same_mathematics():
    """With the forwards that are compiled, the loss's gradients are those of the plain network in float64, within
    1e-5 of the largest of each parameter, or 1e-6 in all."""
    torch.manual_seed(0)
    x, t, unet, plain = torch.randn(3, 1, 8, 8), torch.tensor([3, 500, 999]), tiny_unet(), tiny_unet().double()
    wanted = gradients(lambda x: plain(x, t).sample, plain, x.double())
    Computation(unet, CPU, channels_last=None, cuda_graphs=True).compile()
    got = gradients(lambda x: unet.forward(x, t).sample, unet, x.to(memory_format=torch.channels_last))
    for name, gradient in wanted.items():
        assert (got[name] - gradient).abs().max() < 1e-5 * gradient.abs().max() + 1e-6, name


def test_compiled_passes_are_the_same_mathematics():
    """The same of compiled code, of a network small enough to be compiled in a test."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.GroupNorm(2, 4), torch.nn.SiLU()]
    network, x = torch.nn.Sequential(*layers), torch.randn(3, 4, 8, 8)
    plain = copy.deepcopy(network).double()
    wanted = gradients(plain, plain, x.double())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of what earlier tests compiled, which a reset leaves
    Computation(network, CPU, channels_last=None, cuda_graphs=True).compile()
    got = gradients(network, network, x.to(memory_format=torch.channels_last))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for name, gradient in wanted.items():
        assert (got[name] - gradient).abs().max() < 1e-5 * gradient.abs().max() + 1e-6, name


def test_a_layout_that_is_asked_for_is_kept():
    """channels_last given stands for both ways."""
    for wanted in (True, False):
        computation = Computation(tiny_unet(), CPU, channels_last=wanted, cuda_graphs=True)
        layouts = [computation.memory_format]
        computation.compile()
        layouts.append(computation.memory_format)
        assert layouts == [torch.channels_last if wanted else torch.contiguous_format] * 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_a_run_on_a_cpu_keeps_the_memory_that_it_frees():
    """Large blocks that are freed and allocated again are not cleared anew by the system, page by page."""
    script = """
import resource, torch
from conftest import tiny_unet
from ddim_hf.training.computation import Computation
def faults():  # of ten times 64 MiB, after as many
    for time in range(20):
        if time == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
Computation(tiny_unet(), torch.device("cpu"), channels_last=None, cuda_graphs=True)
print(before, faults())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
