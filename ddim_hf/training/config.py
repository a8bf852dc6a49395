"""What a training run is made of: one row of data per recipe, and the settings that override it."""

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from ..data import MAX_CACHED_BYTES
from ..loss import WEIGHTINGS
from ..unet import UNET_CONFIGS
from .profiles import Profile, parse_profiles

# The samplers are those of the CIFAR-10 runs that this package was written after.
_CIFAR10 = dict(
    dataset_name="uoft-cs/cifar10",
    random_flip=True,
    lr_scheduler="constant",
    lr_warmup_steps=5_000,
    ema_decay="0.9999",
    validation_split="test",
    feature_extractor="inception",
    samplers="20:0.0:5000:6000,50:0.0:50000:6000,100:1.0:100000:50000",
)
_CELEBAHQ = _CIFAR10 | dict(
    dataset_name="korexyz/celeba-hq-256x256", validation_split="validation", samplers="50:0.0:25000:6000"
)
_DIGITS = dict(
    dataset_name="digits",
    random_flip=False,
    lr_scheduler="cosine",
    lr_warmup_steps=50,
    ema_decay="0.995",
    validation_split="test",
    feature_extractor="none",
    samplers="50:0.0:500:64",
)
# One's own images: a small network, and as many steps as the images call for. It predicts x_0, whose loss gives the
# noise end, where the outlines are decided, the most weight, and does not need narrow layers to carry the noise.
_IMAGES = dict(
    random_flip=False,
    prediction_type="sample",
    lr_scheduler="cosine",
    lr_warmup_steps=100,
    ema_decay="0.995",
    validation_split="none",
    feature_extractor="none",
    samplers="50:0.0:500:64",
    max_train_steps=100_000,
    num_train_epochs=200,
)

# fmt: off
RECIPES: dict[str, dict[str, Any]] = {
    "digits":       dict(resolution=8,   batch_size=64,  learning_rate=1e-3, max_train_steps=1_200,   **_DIGITS),
    "images-32":    dict(resolution=32,  batch_size=16,  learning_rate=1e-3, **_IMAGES),
    "images-64":    dict(resolution=64,  batch_size=8,   learning_rate=1e-3, **_IMAGES),
    "images-128":   dict(resolution=128, batch_size=8,   learning_rate=1e-3, **_IMAGES),
    "cifar10-64":   dict(resolution=32,  batch_size=128, learning_rate=2e-4, max_train_steps=800_000, **_CIFAR10),
    "cifar10-128":  dict(resolution=32,  batch_size=128, learning_rate=2e-4, max_train_steps=800_000, **_CIFAR10),
    "celebahq-256": dict(resolution=256, batch_size=64,  learning_rate=2e-5, max_train_steps=500_000, **_CELEBAHQ),
}
# fmt: on

# Settings that a resumed run may change: they say where, how long and how watched a run is, not what it computes, or
# what they lead to is compared itself (images, network, noise schedule).
FREE_ON_RESUME = frozenset(
    "output_dir max_train_steps num_train_epochs cache_dir refresh_cache max_cached_bytes data_on_device "
    "dataset_name dataset_config_name dataset_revision image_column class_conditional label_column "
    "gradient_accumulation_steps gradient_checkpointing compile logger logging_steps checkpointing_steps "
    "checkpoints_total_limit resume_from_checkpoint samplers feature_extractor inception_weights eval_batch_size "
    "validation_split validation_steps validation_images dry_run push_to_hub hub_model_id hub_private hub_license "
    "recipe network block_out_channels layers_per_block attention_levels pretrained dropout "
    "grey skip_broken prediction_type beta_schedule".split()
)


PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class SamplerSettings:
    """How a sampler runs during training: `steps:eta:every:images`."""

    steps: int
    eta: float
    every: int
    images: int

    @property
    def name(self) -> str:
        return f"{self.steps}-{self.eta:g}"


def setting(help: str, default: Any = None, **argparse: Any) -> Any:
    return field(default=default, metadata={"help": help, **argparse})


SWITCH = dict(nargs="?", const=True)  # of a bool that may be None: the flag alone means True


@dataclass
class TrainingConfig:
    """The settings of a run; whatever is None takes the recipe's value.

    Raises:
        ValueError: a value outside what its help text says.
    """

    recipe: str | None = setting(
        f"the row of defaults: {', '.join(RECIPES)}; if not given, digits, or for your own images one of "
        "images-32, -64 and -128 by the resolution"
    )
    output_dir: str = setting("where the run's folder is made", "outputs/train")

    network: str | None = setting(
        f"the U-Net, that of the recipe's name if not given: {', '.join(UNET_CONFIGS)}, or a UNet2DModel's config, "
        "FILE.json"
    )
    block_out_channels: str | None = setting("channels of each level of a new network: 64,128,128")
    layers_per_block: int | None = setting("ResNet blocks of each level of a new network")
    attention_levels: str | None = setting("levels of a new network with attention, from 0, by commas; none")
    dropout: float | None = setting(
        "dropout, in [0, 1); that of the network's row or of the pretrained model if not given"
    )
    pretrained: str | None = setting("start from this model's UNet2DModel (folder or Hub id) instead of a new one")
    dataset_name: str | None = setting("'digits', a Hub id, a folder of images, a parquet file or a saved dataset")
    dataset_config_name: str | None = setting("which configuration, of a dataset that has several")
    dataset_revision: str | None = setting("branch, tag or commit of a dataset on the Hub")
    split: str = setting("split to train on", "train")
    image_column: str | None = setting("the column that holds the images; found by its type if not given")
    class_conditional: bool = setting("train with the images' labels: a class for each, and the null class", False)
    label_column: str | None = setting("the column that holds the labels; found by its name or type if not given")
    label_dropout: float | None = setting("hide a label with this probability, in [0, 1); 0.1 if not given")
    cache_dir: str | None = setting("where decoded images are kept")
    refresh_cache: bool = setting("read and decode all images again, whatever is kept of them", False)
    max_cached_bytes: int = setting("larger sets, when decoded, are decoded on each access", MAX_CACHED_BYTES)
    data_on_device: str = setting("copy all images to the device: yes, no, or auto, on a GPU that has room", "auto")
    skip_broken: bool = setting("leave out images that cannot be decoded instead of stopping", False)
    grey: bool = setting("make colour images grey, for a network of one channel", False)
    resolution: int | None = setting("side of the square images, in pixels")
    random_flip: bool | None = setting("mirror each image with probability 1/2", **SWITCH)

    max_train_steps: int | None = setting("optimizer steps in all")
    num_train_epochs: int | None = setting("passes over all images; with max_train_steps what ends first counts")
    batch_size: int | None = setting("images of one optimizer step, over all processes and accumulation passes")
    gradient_accumulation_steps: int = setting("passes in which a process works off its share of a step", 1)
    gradient_checkpointing: bool = setting(
        "compute the ResNet blocks' activations again in the backward pass instead of keeping them", False
    )
    learning_rate: float | None = setting("peak learning rate of AdamW")
    class_learning_rate: float | None = setting(
        "peak learning rate of the class embedding; if not given 20 times the others' where it starts at zero"
    )
    lr_scheduler: str | None = setting("after warm-up: constant, or cosine to zero at max_train_steps")
    lr_warmup_steps: int | None = setting("steps of linear warm-up")
    weight_decay: float = setting("decoupled weight decay of AdamW", 0.0)
    max_grad_norm: float = setting("gradients are scaled down to this norm", 1.0)
    mixed_precision: str | None = setting("no, fp16 or bf16, of the network alone; the launcher's if not given")
    ema_decay: str | None = setting(
        "decay of the averaged weights, or power:SIGMA_REL; several by commas, the first is the result; none"
    )
    seed: int = setting("order, flips, timesteps, noise and first weights are functions of it", 0)
    prediction_type: str | None = setting(
        "epsilon, v_prediction or sample; if not given the pretrained model's, of a new one the recipe's or epsilon"
    )
    beta_schedule: str | None = setting("linear, scaled_linear or squaredcos_cap_v2; the pretrained model's or linear")
    snr_gamma: float | None = setting("weight the loss by min-SNR with this gamma (5 is usual)")
    loss_weighting: str | None = setting(
        "weight the loss of eps more at the noise end: p2 (1 - alpha; Choi et al. 2022), v (1 / alpha; Salimans and "
        "Ho 2022) or eps+v/10; that of x_0, as of images-32, -64 and -128, has more weight there than by any of these"
    )
    compile: str = setting(  # and from Python a bool
        "compile the network: true, false, or auto, if a trial at the start finds it faster", False, **SWITCH
    )
    channels_last: bool | None = setting(
        "lay the network out channels-last; if not given, on a GPU and where compiled", **SWITCH
    )

    samplers: str | None = setting("steps:eta:every:images by commas, run during training on the EMA weights; none")
    feature_extractor: str | None = setting("features of the samplers' distance: inception, a TorchScript file, none")
    inception_weights: str | None = setting("Inception's weights as a file, for machines without network")
    eval_batch_size: int = setting("images that a sampler or a validation passes through the network at once", 64)
    validation_split: str | None = setting(
        "split of the validation loss, or none (as where dataset_name is given alone)"
    )
    validation_steps: int | None = setting("steps between two validations; 1000 if not given")
    validation_images: int | None = setting(
        "images of the validation loss, at most, evenly over the split; 1024 if not given"
    )
    logger: str = setting("tensorboard, wandb or none", "tensorboard")
    logging_steps: int = setting("steps between two log lines; the only steps that wait for the device", 50)

    checkpointing_steps: int = setting("steps between two checkpoints", 1000)
    checkpoints_total_limit: int = setting("checkpoints kept", 3)
    resume_from_checkpoint: str | None = setting("latest, or a checkpoint's folder")
    push_to_hub: bool = setting("publish the result when the run is done", False)
    hub_model_id: str | None = setting("where to: org/name")
    hub_private: bool = setting("make that repository private", False)
    hub_license: str | None = setting("the license of the weights, such as mit; the card names none if not given")
    dry_run: bool = setting("print the resolved settings, sizes and memory, and stop", False)

    def __post_init__(self):
        if self.network is not None and self.resolution is None:
            self.resolution = _sample_size(self.network)
        if self.recipe is None:
            self.recipe = self._own_recipe()
        _allow("recipe", self.recipe, RECIPES)
        recipe = RECIPES[self.recipe]
        if self.dataset_name is None and "dataset_name" not in recipe:
            raise ValueError(f"recipe is {self.recipe} and has no images; allowed: with --dataset_name")
        own_images = self.dataset_name not in (None, recipe.get("dataset_name"))
        if own_images and self.validation_split is None:
            self.validation_split = "none"
        self._refuse_what_has_no_effect()
        defaults = dict(recipe)
        if self.max_train_steps is not None or self.num_train_epochs is not None:
            defaults |= dict(max_train_steps=None, num_train_epochs=None)
        if self.pretrained is None:
            defaults["network"] = self.recipe
        else:
            defaults["prediction_type"] = None
        if self.validation_split != "none":
            defaults |= dict(validation_steps=1000, validation_images=1024)
        if self.class_conditional:
            defaults["label_dropout"] = 0.1
        if self._has_no_samplers() or own_images and self.inception_weights is None:
            defaults["feature_extractor"] = "none"
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.ema_decay = str(self.ema_decay)  # from Python also a number
        if self.validation_split == self.split:
            raise ValueError(
                f"validation_split is {self.split!r}, which is trained on; allowed: another split, or none"
            )
        if self.network is not None and not self.network.endswith(".json"):
            _allow("network", self.network, (*UNET_CONFIGS, "a UNet2DModel config, FILE.json"))
        for name, least in (("block_out_channels", 1), ("attention_levels", 0)):
            self.numbers(name, least)
        self.compile = {"true": True, "false": False}.get(str(self.compile).lower(), self.compile)
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"compile is {self.compile!r}; allowed: true, false, auto")
        _allow("loss_weighting", self.loss_weighting, (None, *WEIGHTINGS))
        _allow("lr_scheduler", self.lr_scheduler, ("constant", "cosine"))
        _allow("mixed_precision", self.mixed_precision, (None, *PRECISIONS))
        _allow("prediction_type", self.prediction_type, (None, "epsilon", "v_prediction", "sample"))
        _allow("beta_schedule", self.beta_schedule, (None, "linear", "scaled_linear", "squaredcos_cap_v2"))
        _allow("data_on_device", self.data_on_device, ("auto", "yes", "no"))
        _allow("logger", self.logger, ("tensorboard", "wandb", "none"))
        for name in (
            "resolution max_train_steps num_train_epochs batch_size gradient_accumulation_steps eval_batch_size "
            "layers_per_block validation_steps validation_images logging_steps "
            "checkpointing_steps checkpoints_total_limit"
        ).split():
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: whole numbers from 1")
        rates = (
            "learning_rate",
            "max_grad_norm",
            *(("class_learning_rate",) if self.class_learning_rate is not None else ()),
        )
        for name in rates:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: numbers above 0")
        if self.seed >= 2**63:
            raise ValueError(f"seed is {self.seed}; allowed: whole numbers from 0 below 2^63")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; allowed: numbers from 0 below 1")
        if self.label_dropout is not None and not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; allowed: numbers from 0 below 1")
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise ValueError(f"snr_gamma is {self.snr_gamma}; allowed: numbers above 0")
        for name in ("lr_warmup_steps", "weight_decay", "seed", "max_cached_bytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: numbers from 0")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub without hub_model_id; allowed: --hub_model_id org/name")
        if self.hub_model_id:
            validate_repo_id(self.hub_model_id)
        for path in (Path(self.output_dir), *Path(self.output_dir).parents):
            if path.exists() and not path.is_dir():
                raise ValueError(
                    f"output_dir is {self.output_dir}, and {path} is a file; allowed: a folder, or a path for one"
                )
        self.averages()
        self.sampler_settings()

    def _own_recipe(self) -> str:
        """The recipe where none is given: that of the digits, or the largest for one's own images that fits them."""
        if self.dataset_name in (None, RECIPES["digits"]["dataset_name"]):
            return "digits"
        fitting = [size for size in (64, 128) if self.resolution is not None and self.resolution >= size]
        return f"images-{max(fitting, default=32)}"

    def _has_no_samplers(self) -> bool:
        return self.samplers is not None and self.samplers.lower() == "none"

    def _refuse_what_has_no_effect(self):
        """Raise ValueError for a setting that was given and that another one makes void."""
        extractor = self.feature_extractor or RECIPES[self.recipe]["feature_extractor"]
        no_samplers = self._has_no_samplers()
        void = {
            "network": (self.pretrained is not None, "pretrained, whose network has its own layout"),
            "block_out_channels": (self.pretrained is not None, "pretrained, whose network has its own layout"),
            "layers_per_block": (self.pretrained is not None, "pretrained, whose network has its own layout"),
            "attention_levels": (self.pretrained is not None, "pretrained, whose network has its own layout"),
            "loss_weighting": (self.snr_gamma is not None, f"snr_gamma {self.snr_gamma}"),
            "validation_steps": (self.validation_split == "none", "no validation_split"),
            "validation_images": (self.validation_split == "none", "no validation_split"),
            "feature_extractor": (no_samplers and self.feature_extractor != "none", "no samplers"),
            "inception_weights": (
                no_samplers or extractor != "inception",
                "no samplers" if no_samplers else f"feature_extractor {extractor}",
            ),
            "label_column": (not self.class_conditional, "no class_conditional"),
            "label_dropout": (not self.class_conditional, "no class_conditional"),
            "class_learning_rate": (not self.class_conditional, "no class_conditional"),
            "hub_private": (not self.push_to_hub, "no push_to_hub"),
        }
        for name, (is_void, other) in void.items():
            if is_void and getattr(self, name) is not None and getattr(self, name) is not False:
                raise ValueError(f"{name} is given with {other}; allowed: one of them")

    def numbers(self, name: str, least: int) -> tuple[int, ...]:
        """The numbers of a setting that lists them by commas; none of one that is not given, or none."""
        text = getattr(self, name)
        if text is None or least == 0 and text.lower() == "none":
            return ()
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError:
            numbers = (least - 1,)
        if min(numbers) < least:
            raise ValueError(f"{name} is {text!r}; allowed: whole numbers from {least} by commas")
        return numbers

    def steps_for(self, num_images: int) -> int:
        """The optimizer steps with so many images: by the epochs or max_train_steps, what ends first."""
        if self.num_train_epochs is None:
            return self.max_train_steps
        by_epochs = math.ceil(self.num_train_epochs * num_images / self.batch_size)
        return min(by_epochs, self.max_train_steps or by_epochs)

    def averages(self) -> list[Profile]:
        """The averages of the weights, the first being the result; empty for none."""
        return parse_profiles(self.ema_decay)

    def sampler_settings(self) -> list[SamplerSettings]:
        """The samplers that run during training."""
        if str(self.samplers).lower() == "none":
            return []
        samplers = []
        for text in self.samplers.split(","):
            try:
                steps, eta, every, images = text.split(":")
                sampler = SamplerSettings(int(steps), float(eta), int(every), int(images))
                valid = (
                    1 <= sampler.steps <= 1000 and 0 <= sampler.eta <= 1 and min(sampler.every, sampler.images) >= 1
                )
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(
                    f"samplers has {text!r}; allowed: steps:eta:every:images by commas (20:0.0:5000:6000), or none"
                )
            if sampler.images < 2 and self.feature_extractor != "none":
                raise ValueError(f"samplers has {text!r}; allowed with a feature_extractor: 2 images or more")
            samplers.append(sampler)
        if len({sampler.name for sampler in samplers}) < len(samplers):
            raise ValueError(f"samplers is {self.samplers!r}; allowed: each pair of steps and eta once")
        return samplers

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the step after `step` finished ones."""
        warmup = min(1.0, (step + 1) / self.lr_warmup_steps) if self.lr_warmup_steps else 1.0
        if self.lr_scheduler == "constant":
            return self.learning_rate * warmup
        done = max(0, step - self.lr_warmup_steps) / max(1, self.max_train_steps - self.lr_warmup_steps)
        return self.learning_rate * warmup * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    def what_it_computes(self) -> dict[str, Any]:
        """The settings that a resumed run must share."""
        names = {item.name for item in fields(self)} - FREE_ON_RESUME
        if self.lr_scheduler == "cosine":
            names.add("max_train_steps")
        return {name: getattr(self, name) for name in sorted(names)}


def _allow(name: str, value: Any, allowed: Any):
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(name for name in allowed if name)}")


def _sample_size(network: str) -> int | None:
    """The side of the images of a row of UNET_CONFIGS, or of a UNet2DModel config in a file, where it says one."""
    if not network.endswith(".json"):
        return UNET_CONFIGS.get(network, {}).get("sample_size")
    try:
        return square_size(json.loads(Path(network).read_text()).get("sample_size"))
    except (ValueError, RecursionError, AttributeError):  # said when the network is built
        return None


def square_size(size: Any) -> int | None:
    """The side that UNet2DModel's sample_size means, a number or two; None for anything but a square."""
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if type(size) is int and size > 0 else None
