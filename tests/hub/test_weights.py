"""A network's weights as files: those of the last save or push alone are loaded, and counted."""

import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMPipeline
from hub_models import WRITER, one_line

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.hub import model_card, push_to_hub
from ddim_hf.hub.weights import count_parameters, main_weights

IN_PARTS, WHOLE = {"max_shard_size": "10KB"}, {}


def saved(folder, value: float, **how):
    """A network whose weights are all `value`, saved in `folder`, whole or in parts."""
    unet = tiny_unet()
    for weight in unet.parameters():
        torch.nn.init.constant_(weight, value)
    DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(folder, **how)
    return folder


def loaded(name, **how) -> set[float]:
    """The weights' value as ours and stock's from_pretrained have it."""
    pipes = [kind.from_pretrained(name, **how) for kind in (DDIMCustomPipeline, DDIMPipeline)]
    return {pipe.unet.conv_in.bias[0].item() for pipe in pipes}


ORDERS = pytest.mark.parametrize(("before", "after"), [(IN_PARTS, WHOLE), (WHOLE, IN_PARTS)])


@ORDERS
@pytest.mark.parametrize("variant", [{}, {"variant": "fp16"}])
def test_what_was_saved_last_is_loaded_and_counted(tmp_path, before, after, variant):
    """Weights saved whole over parts, and in parts over a whole, are those that load and that the card counts."""
    saved(tmp_path, 1.0, **before, **variant)
    saved(tmp_path, 2.0, **after, **variant)
    assert loaded(tmp_path, **variant) == {2.0}
    assert f"{sum(weight.numel() for weight in tiny_unet().parameters()):,} parameters" in model_card(tmp_path)


@ORDERS
def test_what_was_pushed_last_is_loaded(hub, tmp_path, before, after):
    """A push over a repo that holds the network whole or in parts leaves none of that: everyone loads the new one."""
    push_to_hub(saved(tmp_path / "old", 1.0, **before), "org/tiny", token=WRITER)
    push_to_hub(saved(tmp_path / "new", 2.0, **after), "org/tiny", token=WRITER)
    assert loaded("org/tiny") == {2.0}
    weights = {name for name in hub.repos["org/tiny"].files() if name.startswith("unet/")}
    assert weights == {f"unet/{file.name}" for file in (tmp_path / "new/unet").iterdir()}


def test_weights_that_a_push_does_not_replace_are_told(hub, tmp_path):
    """A push of the network alone leaves the repo's fp16 variant, and a warning names it; so with a branch and a
    subfolder, whose own weights alone count."""
    for where in ({}, {"subfolder": "a", "revision": "v2"}):
        saved(tmp_path / "both", 1.0, variant="fp16")
        push_to_hub(saved(tmp_path / "both", 1.0, **IN_PARTS), "org/tiny", token=WRITER, **where)
        with pytest.warns(UserWarning, match=r"before, which may be old: (a/)?unet/\S+\.fp16\.safetensors$"):
            push_to_hub(saved(tmp_path / "new", 2.0), "org/tiny", token=WRITER, **where)
    names = [name for name in hub.repos["org/tiny"].files("v2") if name.startswith("a/unet/")]
    assert len(names) == 3 and not any("-of-" in name or "index" in name for name in names)


def test_an_index_of_files_that_are_gone_is_refused(hub, tmp_path):
    """A folder whose index names a part that is not there is neither pushed nor counted: one line names both."""
    saved(tmp_path, 1.0, **IN_PARTS)
    parts = main_weights(tmp_path / "unet")
    assert len(parts) > 1 and count_parameters(parts) == sum(weight.numel() for weight in tiny_unet().parameters())
    parts[0].unlink()
    for call in (lambda: push_to_hub(tmp_path, "org/tiny", token=WRITER), lambda: model_card(tmp_path)):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        one_line(caught, "index.json", parts[0].name)
