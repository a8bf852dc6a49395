"""A run's own network, from a file or by flags, and what is said of wrong ones before the data is read."""

import json

import pytest
import torch
from diffusers import UNet2DModel

from ddim_hf.training import TrainingConfig
from ddim_hf.training.setup import build_model, describe_model
from ddim_hf.unet import build_unet

OWN = dict(dataset_name="my/images")


def test_a_unets_config_file_is_the_network(tmp_path):
    """--network FILE.json builds the network that the file describes, at its size, with its weights from the seed."""
    unet = build_unet("images-32", sample_size=16, block_out_channels=(8, 16, 16, 16), norm_num_groups=4)
    unet.save_config(tmp_path / "unet")
    file = (tmp_path / "unet/config.json").rename(tmp_path / "mine.json")
    config = TrainingConfig(network=str(file), **OWN)
    built, *_ = build_model(config)
    assert config.resolution == 16 and config.recipe == "images-32"
    public = [{k: v for k, v in each.config.items() if not k.startswith("_")} for each in (built, unet)]
    assert json.loads(json.dumps(public[0])) == json.loads(json.dumps(public[1]))
    again, *_ = build_model(TrainingConfig(network=str(file), **OWN))
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), again.parameters(), strict=True))
    assert build_model(TrainingConfig(network=str(file), resolution=32, **OWN))[0].config.sample_size == 32


def test_flags_change_the_network():
    """Channels, blocks and attention are those of the flags; attention is at the smallest images if not told."""
    flags = dict(block_out_channels="16,32,32,64", layers_per_block=2, attention_levels="1,3")
    unet, *_ = describe_model(TrainingConfig(**flags, **OWN))
    assert unet.config.block_out_channels == (16, 32, 32, 64) and unet.config.layers_per_block == 2
    attends = ["Attn" in kind for kind in unet.config.down_block_types]
    assert attends == [False, True, False, True]
    assert ["Attn" in kind for kind in unet.config.up_block_types] == attends[::-1]
    unet, *_ = describe_model(TrainingConfig(block_out_channels="16,32", **OWN))
    assert unet.config.down_block_types == ("ResnetDownsampleBlock2D", "AttnDownBlock2D")
    assert unet.config.up_block_types == ("AttnUpBlock2D", "ResnetUpsampleBlock2D")
    assert unet.config.downsample_type == unet.config.upsample_type == "resnet"
    unet, *_ = describe_model(TrainingConfig(attention_levels="none", **OWN))
    assert unet.config.down_block_types == ("ResnetDownsampleBlock2D",) * 4
    unet, *_ = describe_model(TrainingConfig(network="cifar10-64", attention_levels="none", **OWN))
    assert unet.config.down_block_types == ("DownBlock2D",) * 4 and unet.config.downsample_type == "conv"


WRONG = {
    "is not JSON": ("{", {}),
    "network is .*mine.json, which is not JSON: maximum recursion": ("[" * 100_000, {}),
    "holds no object": ("[3]", {}),
    r"has block_out_channels \[32, \"64\"\]; allowed: a list of": ('{"block_out_channels": [32, "64"]}', {}),
    "has block_out_channels null; allowed: a list of": ('{"block_out_channels": null}', {}),
    "has norm_num_groups 0; allowed: whole numbers from 1": ('{"norm_num_groups": 0}', {}),
    'has downsample_type .*mean.*; allowed: "conv", "resnet", null': ('{"downsample_type": ["mean"]}', {}),
    r"has sample_size \[64, 32\]; allowed: a whole number from 1, or two": ('{"sample_size": [64, 32]}', {}),
    "has colour, depth; allowed: config keys of UNet2DModel": ('{"colour": 1, "depth": 2}', {}),
    r"in_channels and out_channels \(4, 4\); allowed": ('{"in_channels": 4, "out_channels": 4}', {}),
    "does not work at 32 x 32 pixels": ('{"down_block_types": ["DownBlock3D"]}', {}),
    "No such file": (None, {"network": "nowhere.json"}),
    "network is 'big'; allowed: digits": (None, {"network": "big"}),
    "block_out_channels is '64,many'; allowed: whole numbers from 1 by commas": (
        None,
        {"block_out_channels": "64,many"},
    ),
    r"block_out_channels is 20,40; allowed with images-32: multiples of 8": (None, {"block_out_channels": "20,40"}),
    "attention_levels is 4; allowed: 0 to 3": (None, {"attention_levels": "4"}),
    "attention_levels is '-1'; allowed": (None, {"attention_levels": "-1"}),
    "layers_per_block is 0; allowed": (None, {"layers_per_block": 0}),
    "resolution is 30; allowed with images-32: multiples of 8": (None, {"resolution": 30}),
    "layers_per_block is given with pretrained": (None, {"layers_per_block": 1, "pretrained": "org/model"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_network_is_one_line(tmp_path, message):
    """What is no network, or does not fit, is one line when the settings are made or the network is described."""
    text, flags = WRONG[message]
    if text is not None:
        (tmp_path / "mine.json").write_text(text)
        flags = {"network": str(tmp_path / "mine.json")}
    with pytest.raises((ValueError, OSError), match=message) as error:
        describe_model(TrainingConfig(**flags, **OWN))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flags", [{"attention_levels": "none"}, {"block_out_channels": "16,32"}])
def test_blocks_of_other_types_are_not_replaced(tmp_path, flags):
    """A file's blocks that the flags of levels cannot give are refused by name where those would replace them."""
    layout = {"down_block_types": ["ResnetDownsampleBlock2D"] * 3, "up_block_types": ["ResnetUpsampleBlock2D"] * 3}
    layout |= {"block_out_channels": [16, 32, 32], "norm_num_groups": 8, "add_attention": False}
    (tmp_path / "mine.json").write_text(json.dumps(layout))
    asked = dict(network=str(tmp_path / "mine.json"), **OWN)
    assert describe_model(TrainingConfig(**asked))[0].config.down_block_types == layout["down_block_types"]
    with pytest.raises(ValueError, match="blocks of other types .ResnetDownsampleBlock2D, ResnetUpsampleBlock2D."):
        describe_model(TrainingConfig(**asked, **flags))
    plain = {"block_out_channels": [16, 32, 32], "norm_num_groups": 8}
    plain |= {f"{way}_block_types": [f"{way.title()}Block2D"] * 3 for way in ("down", "up")}
    for layout, said in (
        (plain | {"upsample_type": "resnet"}, "upsample_type resnet beside downsample_type conv"),
        ({"downsample_type": "resnet", "upsample_type": "resnet", "norm_num_groups": 8}, "DownBlock2D, UpBlock2D"),
        (plain | {"downsample_type": None}, None),
    ):
        (tmp_path / "mine.json").write_text(json.dumps(layout))
        describe_model(TrainingConfig(**asked))
        if said is None:
            assert describe_model(TrainingConfig(**asked, **flags))[0].config.downsample_type == "conv"
            continue
        with pytest.raises(ValueError, match=said):
            describe_model(TrainingConfig(**asked, **flags))


def test_a_rows_size_is_the_runs():
    """The size of a network's row is the run's where no other is given, as a file's is."""
    run = TrainingConfig(network="images-64", dataset_name="my/images")
    assert run.resolution == 64 and run.recipe == "images-64"
    assert TrainingConfig(network="images-64", dataset_name="my/images", resolution=32).resolution == 32


@pytest.mark.parametrize("size", [64, [64, 64]])
def test_a_files_size_is_the_runs(tmp_path, size):
    """A network's file says the resolution, as a number or as two."""
    (tmp_path / "mine.json").write_text(json.dumps(dict(build_unet("images-64").config) | {"sample_size": size}))
    assert TrainingConfig(network=str(tmp_path / "mine.json"), dataset_name="my/images").resolution == 64


def test_the_layout_of_published_files_is_taken(tmp_path):
    """A config.json as diffusers writes it, private keys and lists included, is taken as it is."""
    layout = dict(build_unet("cifar10-64").config) | {"_class_name": "UNet2DModel", "_diffusers_version": "0.1"}
    (tmp_path / "config.json").write_text(json.dumps(layout))
    unet, *_ = describe_model(TrainingConfig(network=str(tmp_path / "config.json"), **OWN))
    assert isinstance(unet, UNet2DModel) and unet.num_parameters() == build_unet("cifar10-64").num_parameters()
