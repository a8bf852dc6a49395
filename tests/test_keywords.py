"""Keywords that the pipeline's methods do not have."""

import inspect

import pytest

from ddim_hf import DDIMCustomPipeline


@pytest.mark.parametrize(
    "method, keywords, message",
    [
        ("__call__", dict(seed=1), "call takes no seed; allowed: seeds=[1]"),
        ("__call__", dict(skip_type="quad"), "call takes no skip_type; allowed: timesteps, or skip_type in the"),
        ("__call__", dict(num_images_per_prompt=4), "call takes no num_images_per_prompt; allowed: batch_size=4"),
        ("__call__", dict(num_inference_step=9), "call takes no num_inference_step; allowed: num_inference_steps"),
        ("__call__", dict(callback=print), "call takes no callback; allowed: callback_on_step_end, called as"),
        ("invert", dict(image=None), "invert takes no image; allowed: images, one or a list"),
        ("invert", dict(seed=1), "invert takes no seed; allowed: images, num_inference_steps, exact"),
        ("reconstruct", dict(steps=7), "reconstruct takes no steps; allowed: num_inference_steps=7"),
        ("interpolate", dict(num_samples=7), "interpolate takes no num_samples; allowed: num_images"),
    ],
)
def test_a_keyword_of_other_pipelines_is_answered_with_ours(pipe, method, keywords, message):
    """A keyword that is unknown, of a peer or misspelt, is answered in one line by the one that is meant."""
    with pytest.raises(TypeError) as caught:
        getattr(pipe, method)(**keywords)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_signature_stays_what_it_was():
    """help() and type checkers see the methods' own arguments."""
    names = list(inspect.signature(DDIMCustomPipeline.__call__).parameters)
    assert names[:4] == ["self", "batch_size", "generator", "eta"] and "keywords" not in names
