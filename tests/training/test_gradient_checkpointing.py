"""Activations computed again instead of kept: the same run."""

import pytest
import torch
from training_runs import SETTINGS, save_tiny_model

from ddim_hf.training import TrainingConfig, TrainingRun


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), dropout=0.3)


def two_steps(model, folder, **settings):
    """The weights after two steps, and how often the first ResNet block ran."""
    run = TrainingRun(TrainingConfig(**{**SETTINGS, "pretrained": model, "output_dir": str(folder), **settings}))
    calls = []
    run.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    run.train_step()
    run.train_step()
    weights = {name: value.detach().clone() for name, value in run.unet.state_dict().items()}
    run.close()
    return weights, len(calls)


@pytest.mark.parametrize("passes", [1, 2])
def test_checkpointing_changes_no_bit(model, tmp_path, passes):
    """With dropout, and with accumulated passes, a run's weights are bit for bit those of one that keeps activations,
    while each block runs a second time in each backward pass."""
    plain, once = two_steps(model, tmp_path, gradient_accumulation_steps=passes)
    again, twice = two_steps(model, tmp_path, gradient_accumulation_steps=passes, gradient_checkpointing=True)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert (once, twice) == (2 * passes, 4 * passes)
