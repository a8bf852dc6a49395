"""The networks: sizes, and the layout of the published DDPM weights."""

import pytest
import torch
from diffusers import UNet2DModel

from ddim_hf import UNET_CONFIGS, build_unet

# config.json of google/ddpm-cifar10-32
PUBLISHED = dict(
    act_fn="silu",
    attention_head_dim=None,
    block_out_channels=[128, 256, 256, 256],
    center_input_sample=False,
    down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    in_channels=3,
    layers_per_block=2,
    mid_block_scale_factor=1,
    norm_eps=1e-06,
    norm_num_groups=32,
    out_channels=3,
    sample_size=32,
    time_embedding_type="positional",
    up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
)


def attention_sizes(unet):
    """Sides of the feature maps that the down path attends to."""
    levels = enumerate(unet.config.down_block_types)
    return [unet.config.sample_size // 2**level for level, kind in levels if kind == "AttnDownBlock2D"]


@pytest.mark.parametrize(
    "name, parameters, size",
    [
        ("cifar10-64", 8_952_067, 32),
        ("cifar10-128", 35_746_307, 32),
        ("celebahq-256", 113_673_219, 256),
    ],
)
def test_paper_networks_have_their_size(name, parameters, size):
    """The DDPM networks have their numbers of parameters, and attend at 16x16 alone, down and up."""
    with torch.device("meta"):
        unet = build_unet(name)
    assert unet.num_parameters() == parameters
    assert unet.config.sample_size == size and attention_sizes(unet) == [16]
    ups = [kind.startswith("Attn") for kind in unet.config.up_block_types]
    assert ups == [kind.startswith("Attn") for kind in reversed(unet.config.down_block_types)]


def test_cifar10_network_takes_the_published_weights():
    """cifar10-128 has the keys, shapes and settings of google/ddpm-cifar10-32, key for key."""
    with torch.device("meta"):
        published, ours = UNet2DModel.from_config(PUBLISHED), build_unet("cifar10-128")
    shapes = {key: value.shape for key, value in published.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    for key, value in PUBLISHED.items():
        assert ours.config[key] == (tuple(value) if isinstance(value, list) else value), key
    assert ours.config.dropout == 0.1


def test_cifar10_network_computes_what_the_published_one_does():
    """With the published network's weights, cifar10-64's layout gives the same output, at 64 channels."""
    torch.manual_seed(0)
    published = UNet2DModel.from_config(PUBLISHED | dict(block_out_channels=[64, 128, 128, 128])).eval()
    ours = build_unet("cifar10-64").eval()
    ours.load_state_dict(published.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x, 500).sample, published(x, 500).sample)


@pytest.mark.parametrize("name", ["digits", "cifar10-64"])
def test_network_returns_its_inputs_shape(name):
    """A network's output has the shape of its input: one prediction a value."""
    unet = build_unet(name).eval()
    x = torch.randn(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    with torch.no_grad():
        assert unet(x, torch.tensor(3)).sample.shape == x.shape


def test_overrides_replace_the_rows_keys():
    """Keyword arguments replace a row's keys, in that network alone."""
    before = {name: dict(row) for name, row in UNET_CONFIGS.items()}
    unet = build_unet("digits", sample_size=(8, 16), block_out_channels=(8, 16), dropout=0.2)
    assert unet.config.sample_size == (8, 16) and unet.config.dropout == 0.2
    assert unet.config.block_out_channels == (8, 16) and unet.config.layers_per_block == 1
    assert UNET_CONFIGS == before


def test_unknown_names_and_keys_are_refused():
    """An unknown network or config key raises ValueError that names it and what is allowed."""
    with pytest.raises(
        ValueError, match="no network 'cifar'; allowed: digits, images-32, images-64, images-128, cifar10-64"
    ):
        build_unet("cifar")
    with pytest.raises(ValueError, match="no config key 'chanels', 'self'"):
        build_unet("digits", chanels=3, self=1)
