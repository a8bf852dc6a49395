"""Classes and guidance: the pipeline beside loops written out by hand, on a tiny network of the real class."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from hub_models import WRITER, one_line

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet

NAMES = {0: "cat", 1: "dog", 2: "3"}
NULL = 3


def class_unet(**overrides):
    """Of three classes and the null class, whose embeddings are so large that images differ."""
    unet = tiny_unet(num_class_embeds=4, **overrides).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    return unet


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return quiet(DDIMCustomPipeline(class_unet(), DDIMSchedulerCustom(), NAMES))


# Classes


def test_build_unet_makes_networks_with_classes():
    """build_unet takes num_class_embeds = K + 1, and the network tells the classes apart."""
    unet = build_unet("digits", num_class_embeds=11).eval()
    with torch.no_grad():
        outputs = unet(torch.ones(11, 1, 8, 8), 500, class_labels=torch.arange(11)).sample
    assert outputs.flatten(1).unique(dim=0).shape[0] == 11


@pytest.mark.parametrize(
    "labels, wanted",
    [
        ("cat", [0, 0, 0]),
        (2, [2, 2, 2]),
        (None, [3, 3, 3]),
        (["dog", 0, None], [1, 0, 3]),
        (("1", np.int64(2), "cat"), [1, 2, 0]),
        (torch.tensor([0, 3, 1]), [0, 3, 1]),
        (np.array(["dog", "cat", "3"]), [1, 0, 2]),
        (range(3), [0, 1, 2]),
    ],
)
def test_labels_are_names_numbers_or_none(pipe, labels, wanted):
    """Names, numbers and None become ids, one for all or one for each; a name goes before a number in a string."""
    ids = pipe.class_ids(labels, 3)
    assert ids.dtype == torch.int64 and ids.tolist() == wanted


@pytest.mark.parametrize("label", ["bird", 4, -1, 1.0, True, "-1", b"cat"])
def test_unknown_labels_raise_with_the_allowed_ones(pipe, label):
    """A label that is none raises ValueError in one line that names the classes."""
    with pytest.raises(ValueError) as caught:
        pipe.class_ids([0, label], 2)
    one_line(caught, repr(label), "allowed: cat (0), dog (1), 3 (2), or None, the null class")


def test_other_numbers_of_labels_raise(pipe):
    """As many labels as images, or one; two classes of one name need their numbers."""
    with pytest.raises(
        ValueError, match=r"class_labels has 2 entries; allowed: one for all images, or one each \(3\)"
    ):
        pipe.class_ids([0, 1], 3)
    crane = DDIMCustomPipeline(pipe.unet, pipe.scheduler, {0: "crane", 1: "crane", 2: "maillot"})
    with pytest.raises(ValueError, match="'crane', the name of classes \\[0, 1\\]; allowed: their numbers"):
        crane.class_ids("crane", 1)


def test_names_are_checked():
    """Names are for all classes but the null class of a network that has some; by default they are the numbers."""
    unet = class_unet()
    assert DDIMCustomPipeline(unet, DDIMSchedulerCustom()).id2label == {0: "0", 1: "1", 2: "2"}
    for names in ({0: "cat"}, {**NAMES, 3: "null"}, {"a": "cat", "b": "dog", "c": "bird"}):
        with pytest.raises(ValueError, match="allowed here: 0 to 2, without the null class"):
            DDIMCustomPipeline(unet, DDIMSchedulerCustom(), names)
    plain = tiny_unet()
    assert DDIMCustomPipeline(plain, DDIMSchedulerCustom()).id2label == {}
    with pytest.raises(ValueError, match="id2label names 3 classes, but the network has none"):
        DDIMCustomPipeline(plain, DDIMSchedulerCustom(), NAMES)
    with pytest.raises(ValueError, match="class_labels is 'cat', but the network has no classes"):
        DDIMCustomPipeline(plain, DDIMSchedulerCustom()).class_ids("cat", 1)


def test_names_are_saved_and_loaded(pipe, tmp_path):
    """A folder's model_index.json holds the names; from_pretrained gives them back with ints as keys, or has none."""
    pipe.save_pretrained(tmp_path / "named")
    assert json.loads((tmp_path / "named" / "model_index.json").read_text())["id2label"]["1"] == "dog"
    back = DDIMCustomPipeline.from_pretrained(tmp_path / "named")
    assert back.id2label == NAMES and back.class_ids("dog", 1).tolist() == [1]
    assert DDIMCustomPipeline.from_pipe(back).id2label == NAMES
    DDIMCustomPipeline(tiny_unet(), pipe.scheduler).save_pretrained(tmp_path / "plain")
    assert "id2label" not in (tmp_path / "plain" / "model_index.json").read_text()
    assert DDIMCustomPipeline.from_pretrained(tmp_path / "plain").id2label == {}


def test_names_go_to_the_hub_and_back(pipe, hub):
    """A push and a pull keep the names."""
    pipe.push_to_hub("org/classes", token=WRITER)
    assert DDIMCustomPipeline.from_pretrained("org/classes").id2label == NAMES
