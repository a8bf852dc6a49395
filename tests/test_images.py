"""Images to states and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddim_hf.images import (
    class_grid,
    image_grid,
    images_to_states,
    pixels_to_pil,
    pixels_to_states,
    states_to_images,
    states_to_pixels,
)

SHAPE = (3, 4, 6)  # neither square nor of three rows, so that no axis passes for another
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
STATES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).double() / 127.5 - 1
NCHW = PIXELS.transpose(0, 3, 1, 2).copy()

KINDS = {
    "PIL list": [Image.fromarray(pixels) for pixels in PIXELS],
    "PIL tuple": tuple(Image.fromarray(pixels) for pixels in PIXELS),
    "uint8 array": PIXELS,
    "float array": PIXELS / 255,
    "float32 array": (PIXELS / 255).astype(np.float32),
    "uint8 tensor": torch.from_numpy(NCHW),
    "float tensor": torch.from_numpy(NCHW) / 255,
}
ONE = {
    "PIL image": KINDS["PIL list"][0],
    "array": PIXELS[0],
    "tensor": torch.from_numpy(NCHW[0]),
    "RGBA image": Image.fromarray(PIXELS[0]).convert("RGBA"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_images_gives_the_same_states(kind):
    """PIL images, arrays and tensors, of bytes or floats, become the same float32 states in [-1, 1]."""
    states = images_to_states(KINDS[kind], SHAPE)
    assert states.dtype == torch.float32 and states.shape == (2, *SHAPE)
    assert (states - STATES).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ONE)
def test_one_image_is_a_batch_of_one(kind):
    """A single image of any kind becomes a batch of one."""
    states = images_to_states(ONE[kind], SHAPE)
    assert states.shape == (1, *SHAPE) and (states - STATES[:1]).abs().max() < 1e-6


def test_grey_and_colour_images_take_the_networks_channels():
    """PIL images are converted to the network's channels: grey ones to RGB, colour ones to grey."""
    grey = Image.fromarray(PIXELS[0, :, :, 0])
    assert torch.equal(images_to_states(grey, SHAPE), images_to_states(grey.convert("RGB"), SHAPE))
    colour = Image.fromarray(PIXELS[0])
    assert torch.equal(images_to_states(colour, (1, 4, 6)), images_to_states(colour.convert("L"), (1, 4, 6)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode):
    """What is transparent in a PIL image is white, as in training, whatever colour hides there."""
    image = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (6, 4), 0)
        image.info["transparency"] = 0
    assert (images_to_states(image.convert(mode), SHAPE) == 1).all()


def test_arrays_of_any_layout():
    """An array that is a mirrored view is taken as what it shows."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert torch.equal(images_to_states(pixels[::-1], SHAPE), images_to_states(pixels, SHAPE).flip(2))


def test_bytes_survive_the_round_trip():
    """All 256 byte values come back from states as they were, as PIL, uint8 and floats."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    states = images_to_states(ramp, (1, 16, 16))
    assert states.min() == -1 and states.max() == 1
    assert torch.equal(states_to_pixels(states), torch.from_numpy(ramp)[:, None, ..., 0])
    image = states_to_images(states, "pil")[0]
    assert image.mode == "L" and np.array_equal(np.asarray(image), ramp[0, :, :, 0])
    assert np.array_equal((states_to_images(states, "np") * 255).round(), ramp)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_pixels_keep_their_channel_axis(channels, mode):
    """Pixels are uint8 [N, C, H, W] for any number of channels, one included, and become images of that many."""
    states = STATES[:, [0, 1, 2, 0][:channels]]
    pixels = states_to_pixels(states)
    assert pixels.dtype == torch.uint8 and pixels.shape == (2, channels, 4, 6)
    assert (pixels_to_states(pixels) - states).abs().max() < 1e-6
    images = pixels_to_pil(pixels)
    assert [image.mode for image in images] == [mode] * 2
    rows = torch.from_numpy(np.stack([np.asarray(image) for image in images])).view(2, 4, 6, channels)
    assert torch.equal(rows.movedim(-1, 1), pixels)


def test_output_types():
    """pil are RGB images, np is [N, H, W, C] and pt [N, C, H, W] in [0, 1], latent the states themselves."""
    states = STATES.float() * 2
    pil, array, tensor = (states_to_images(states, output_type) for output_type in ("pil", "np", "pt"))
    assert [(image.mode, image.size) for image in pil] == [("RGB", (6, 4))] * 2
    assert array.shape == (2, 4, 6, 3) and array.dtype == np.float32 and array.min() == 0 and array.max() == 1
    assert torch.equal(tensor, torch.from_numpy(array).permute(0, 3, 1, 2))
    assert np.array_equal(np.stack([np.asarray(image) for image in pil]), (array * 255).round())
    assert states_to_images(states, "latent") is states
    assert torch.equal(states, STATES.float() * 2)  # not changed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_states_that_are_not_finite_make_no_pictures(value):
    """An image with one such value is named, as it is called or by its place; arrays and tensors keep the value."""
    states = torch.zeros(4, *SHAPE)
    states[1, 0, 0, 0] = states[3, 2, 3, 5] = value
    for convert in (states_to_pixels, lambda x, *numbers: states_to_images(x, "pil", *numbers)):
        with pytest.raises(
            ValueError, match=r"not finite \(NaN or infinite\), .* are the images \[1, 3\], counted from 0"
        ):
            convert(states)
        with pytest.raises(ValueError, match=r"the images \[7, 9\]"):
            convert(states, [6, 7, 8, 9])
        convert(states[::2])
    assert np.isnan(states_to_images(states, "np")).sum() == 2 * np.isnan(value)
    assert states_to_images(states, "pt")[1].isnan().sum() == np.isnan(value)


def test_half_precision_states_become_whole_images():
    """States in bfloat16 become float32 arrays and images, within bfloat16's precision."""
    states = STATES.bfloat16()
    assert states_to_images(states, "np").dtype == np.float32
    assert (states_to_pixels(states).int() - torch.from_numpy(NCHW)).abs().max() <= 1


def test_latents_are_taken_as_they_are():
    """input_type="latent" takes floats of any range, unscaled, as float32."""
    latents = torch.randn(2, *SHAPE) * 5
    assert torch.equal(images_to_states(latents, SHAPE, "latent"), latents)
    assert images_to_states(latents.bfloat16(), SHAPE, "latent").dtype == torch.float32


BAD = [
    (torch.zeros(2, 3, 4, 5), "image", r"shape \(2, 3, 4, 5\); allowed: \(N, 3, 4, 6\)"),
    (torch.zeros(0, *SHAPE), "image", r"shape \(0, 3, 4, 6\)"),
    (np.zeros((2, 3, 4, 6)), "image", r"shape \(2, 6, 3, 4\); allowed: \(N, 3, 4, 6\)"),
    (np.zeros((4, 6)), "image", "allowed"),
    (torch.full(SHAPE, 1.5), "image", r"values from 1.5 to 1.5; allowed: floats in \[0, 1\] or uint8"),
    (torch.full(SHAPE, -1.0), "image", "values from -1"),
    (torch.full(SHAPE, float("nan")), "image", "values from nan"),
    (Image.new("RGB", (5, 4)), "image", r"shape \(1, 3, 4, 5\); allowed"),
    ([Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6))], "image", "sizes .*; allowed: one size"),
    (Image.new("I;16", (6, 4)), "image", "mode I;16; allowed: modes of 8 bits"),
    (Image.new("F", (6, 4)), "image", "mode F; allowed"),
    (Image.new("RGB", (6, 4)), "latent", "latents are torch.uint8; allowed: floats"),
    (torch.zeros(SHAPE), "pixels", "input_type is 'pixels'; allowed: 'image', 'latent'"),
    (np.zeros((4, 6, 3), np.uint16), "image", "an array of uint16; allowed: floats"),
    ([], "image", "images is list; allowed: PIL"),
    ("photo.png", "image", "images is str; allowed: PIL"),
    (None, "image", "images is NoneType; allowed"),
]


@pytest.mark.parametrize("images, input_type, message", BAD, ids=[message[:30] for *_, message in BAD])
def test_other_images_are_refused(images, input_type, message):
    """Images of another kind, size or range raise ValueError in one line: what was given and what is allowed."""
    with pytest.raises(ValueError, match=message) as raised:
        images_to_states(images, SHAPE, input_type)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("count, columns", [(4, 2), (5, 3), (7, 4)])
def test_a_row_a_class_with_its_name(count, columns):
    """Images that take two classes in turn stand in two rows, named on the left; places left over are black."""
    images = [Image.new("RGB", (48, 48), (10 * number + 10,) * 3) for number in range(count)]
    grid = np.asarray(class_grid(images, ["cat", "dog"]))
    names, cells = grid[:, : -columns * 52], grid[:, -columns * 52 :]
    assert names.shape[1] > 8 and names[:52].any() and names[52:].any() and (names[:52] != names[52:]).any()
    shown = [cells[row * 52 + 26, column * 52 + 26, 0] for row in (0, 1) for column in range(columns)]
    even, odd = ([10 * number + 10 for number in range(first, count, 2)] for first in (0, 1))
    assert shown == even + [0] * (columns - len(even)) + odd + [0] * (columns - len(odd))


def test_any_name_labels_a_row():
    """A long name is cut, several lines become one, and letters that the font lacks give way to a number."""
    images = [Image.new("RGB", (48, 48))] * 4
    for name, same in (("a\nb", "a b"), ("x" * 25, "x" * 21 + "..."), ("\u732b", "1"), (" ", "1")):
        grid, wanted = (np.asarray(class_grid(images, ["cat", text])) for text in (name, same))
        assert np.array_equal(grid, wanted)


def test_a_grid_without_rows_of_classes():
    """One class, none, or fewer than two images of each: the plain grid, of every image."""
    images = [Image.new("RGB", (48, 48), (number, 9, 9)) for number in range(5)]
    for names in ([], ["cat"], ["a", "b", "c"]):
        assert np.array_equal(np.asarray(class_grid(images, names)), np.asarray(image_grid(images)))
