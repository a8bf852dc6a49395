"""Models come down: from a folder here or from the Hub, as safetensors, in every layout that diffusers wrote.

The layouts: `model_index.json` beside `unet/` and `scheduler/`; the two folders without an index; and the oldest,
UNet and scheduler config at the root, with or without an index.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import HfApi, snapshot_download

from ..files import read_json
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .errors import one_clear_line, retry
from .weights import NAME, count_parameters, weight_patterns

INDEX = "model_index.json"
UNETS, SCHEDULERS = ("unet/config.json", "config.json"), ("scheduler/scheduler_config.json", "scheduler_config.json")
CONFIGS = [INDEX, *UNETS, *SCHEDULERS]
HUB_KEYWORDS = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # of from_pretrained


def resolve_model(
    name: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    use_safetensors: bool | None = None,
    weights: bool = True,
) -> Path:
    """Find the folder that a pipeline is loaded from: `name` itself, or what is downloaded of it into the Hub's cache.

    Args:
        name: a folder on this machine, or `"user/name"` on the Hub; in any layout that diffusers wrote.
        revision: a branch, a tag or a commit, of a model on the Hub; main where None.
        variant: of the weights, such as `"fp16"`.
        local_files_only: ask the cache alone. Where the Hub cannot be reached, the cache is asked as well.
        use_safetensors: False takes pickled weights (which can run code of their author's); else they are refused.
        weights: False leaves the UNet's weights out, for a caller who brings a UNet.

    Raises `ValueError` for something that is not a repo id, or a revision of a folder, and `OSError` (of which
    `FileNotFoundError`, `PermissionError` and `ConnectionError` are kinds) for the rest; each is one line that says
    what to do.
    """
    if Path(name).is_dir():
        folder = Path(name)
        if revision is not None:
            raise ValueError(f"revision is {revision!r} of {str(name)!r}, a folder; allowed: of a model on the Hub")
        _check_configs(str(name), folder)
        if weights:  # finds a file cut short
            count_parameters(sorted(_first(folder, UNETS).parent.glob("*.safetensors")))
        return folder
    repo_id = str(name)
    suffix = "bin" if use_safetensors is False else "safetensors"
    asked = {"cache_dir": cache_dir, "force_download": force_download, "token": token}

    def download(patterns: list[str], revision: str | None) -> Path:
        with one_clear_line(repo_id, revision, local_files_only=local_files_only):
            asked_now = asked | {"revision": revision, "local_files_only": local_files_only}
            return Path(retry(snapshot_download, repo_id, allow_patterns=patterns, **asked_now))

    # The configs first: they say whether the weights, which may be large, are ours to load. Then the same commit.
    folder = download(CONFIGS, revision)
    _check_configs(repo_id, folder)
    if not weights:
        return folder
    names = weight_patterns(variant, suffix)
    download(CONFIGS + [where + name for where in ("unet/", "") for name in names], folder.name)
    files = [file for where in ("unet/", "") for name in names for file in folder.glob(where + name)]
    if not files:
        _refuse_weights(repo_id, folder.name, variant, suffix, local_files_only, token)
    count_parameters([file for file in files if file.suffix == ".safetensors"])  # finds a file cut short
    return folder


def load_model(pipeline_class: type, load_folder: Callable, name: str | Path, **kwargs):
    """Find the model `name` and load it: the body of `DDIMCustomPipeline.from_pretrained`, which takes these `kwargs`.

    A folder with an index goes to `load_folder`, diffusers' own `from_pretrained`; one without is read here. Raises as
    `resolve_model` does.
    """
    kwargs["use_safetensors"] = kwargs.get("use_safetensors") is not False  # None too: a pickle only where asked for
    hub = {key: kwargs.pop(key) for key in HUB_KEYWORDS if key in kwargs}
    weights = {key: kwargs.get(key) for key in ("variant", "use_safetensors")}
    folder = resolve_model(name, weights="unet" not in kwargs, **hub, **weights)
    if (folder / INDEX).is_file():
        file = folder / "scheduler" / "scheduler_config.json"
        if "scheduler" not in kwargs and file.is_file() and read_json(file).get("_class_name") == "DDIMScheduler":
            kwargs["scheduler"] = _scheduler(file)  # stock's, which the index names, would warn of our keys
        pipeline = load_folder(folder, **kwargs)
    else:
        unet, scheduler = kwargs.pop("unet", None), kwargs.pop("scheduler", None)
        unet = unet or diffusers.UNet2DModel.from_pretrained(_first(folder, UNETS).parent, **kwargs)
        pipeline = pipeline_class(unet, scheduler or _scheduler(_first(folder, SCHEDULERS)))
    # As diffusers itself records it: the repository, where the folder would be the Hub cache's.
    pipeline.register_to_config(_name_or_path=str(name))
    pipeline.commit = None if Path(name).is_dir() else folder.name
    return pipeline


def load_configs(
    name: str | Path, cache_dir: str | Path | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return a model's configs: its network's, its scheduler's as ours, its index; of the Hub nothing else is loaded.

    Raises as `resolve_model` does.
    """
    folder = resolve_model(name, weights=False, cache_dir=cache_dir)
    scheduler = _scheduler(_first(folder, SCHEDULERS))
    if not isinstance(scheduler, DDIMSchedulerCustom):
        scheduler = DDIMSchedulerCustom.from_scheduler(scheduler)
    index = folder / INDEX
    return read_json(_first(folder, UNETS)), scheduler.config, read_json(index) if index.is_file() else {}


def is_model(folder: str | Path) -> bool:
    """Whether a folder holds a model in one of the layouts, rather than, say, images."""
    folder = Path(folder)
    return (folder / INDEX).is_file() or bool(_first(folder, UNETS) and _first(folder, SCHEDULERS))


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _scheduler(file: Path):
    """The scheduler that wrote a config, ours for stock's DDIM; the pipeline recasts any other."""
    config = read_json(file)
    name = config.get("_class_name", "DDIMScheduler")
    ours = ("DDIMSchedulerCustom", "DDIMScheduler")
    kind = DDIMSchedulerCustom if name in ours else getattr(diffusers, name, None)
    if kind is None:
        raise ValueError(f"{file} is the config of a {name}, which this diffusers does not know")
    return kind.from_config(config)


def _check_configs(name: str, folder: Path):
    """Raise for a folder or repo whose configs are not those of a model that can be loaded."""
    unet = _first(folder, UNETS)
    if unet is None:
        raise FileNotFoundError(f"{name} has no UNet: neither unet/config.json nor config.json is there")
    kind = read_json(unet).get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{name} holds a {kind}: only models of a UNet2DModel can be loaded")
    if _first(folder, SCHEDULERS) is None:
        raise FileNotFoundError(f"{name} has a UNet but no scheduler_config.json: its noise schedule is unknown")


def _refuse_weights(repo_id, commit, variant, suffix, local_files_only, token):
    """Say why there are none: another variant, pickles alone, or nothing at all."""
    of_variant = f" of variant {variant!r}" if variant else ""
    if local_files_only:
        raise FileNotFoundError(f"{repo_id} has no *.{suffix} weights{of_variant} in the cache: load it once online")
    with one_clear_line(repo_id, commit):
        names = retry(HfApi(token=token).list_repo_files, repo_id, revision=commit)
    weights = [name for name in names if re.fullmatch(rf"(unet/)?{NAME}.*\.(safetensors|bin)", name)]
    if suffix == "safetensors" and weights and all(name.endswith(".bin") for name in weights):
        raise OSError(
            f"{repo_id} holds pickled weights alone ({weights[0]}), which can run code of their author's: "
            "ask the author for safetensors, or, if you trust them, pass use_safetensors=False"
        )
    there = f"it has {', '.join(weights)}" if weights else "it has no UNet weights of any kind"
    raise FileNotFoundError(f"{repo_id} has no *.{suffix} weights{of_variant}: {there}")
