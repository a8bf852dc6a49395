"""The Hub: what a user needs goes up in one commit with a true model card, and models come down as safetensors."""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import UNet2DModel
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .model_card import clean, count_parameters, model_card, write_model_card

__all__ = ["load_model", "model_card", "push_pipeline", "push_to_hub", "resolve_model", "write_model_card"]

PUSHED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/*.safetensors",
    "unet/*.safetensors.index*.json",
    "samples.png",
    "results.json",
]
CONFIGS = [
    *("model_index.json", "unet/config.json", "config.json"),
    *("scheduler/scheduler_config.json", "scheduler_config.json"),
]
KEYWORDS = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # of from_pretrained, for the Hub
RETRY_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds
TRANSIENT = (408, 429, 500, 502, 503, 504)


# Push


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Push a finished run, or any folder that `save_pretrained` wrote, as one commit.

    What goes up is `model_index.json`, the scheduler's and the UNet's configs, the UNet's safetensors, `samples.png`
    and `results.json` where there, and the model card. Checkpoints, logs and pickled weights stay behind. Nothing in
    `folder` is changed, so a push that fails can be run again.

    Args:
        folder: holds `model_index.json`, `scheduler/` and `unet/`.
        repo_id: `"name"` or `"user/name"`; made where it does not exist.
        private: who may see a repo that this call makes; no effect on one that exists.
        token: one with write access; the stored one (`hf auth login`, `HF_TOKEN`) where None.
        revision: the branch to commit to, made from main where it does not exist.
        create_pr: open a pull request in place of committing.
        subfolder: put the files there, without a card.

    Returns the address of the repo, of the branch, or of the pull request.

    Raises `FileNotFoundError` or `ValueError` for a folder or a repo id that will not do, and `OSError` (of which
    `PermissionError` and `ConnectionError` are kinds) for what the Hub refuses; each is one line that says what to do.
    """
    folder = Path(folder)
    files = _files_to_push(folder)
    api = HfApi(token=token)
    with _one_clear_line(repo_id, revision, push=True):
        url = _retry(api.create_repo, repo_id, private=private, exist_ok=True)
        repo_id = url.repo_id
        if revision is not None:
            _retry(api.create_branch, repo_id, branch=revision, exist_ok=True)
        head = _retry(api.repo_info, repo_id, revision=revision)

        # The commit names the one it was made from: had the repo moved on, the Hub refuses it, and a repeat is safe.
        prefix = f"{subfolder}/" if subfolder else ""
        operations = [
            CommitOperationAdd(prefix + file.relative_to(folder).as_posix(), _content(file)) for file in files
        ]
        if not subfolder:
            card = model_card(folder, repo_id=repo_id, existing=_readme_on_hub(repo_id, head, token))
            operations.append(CommitOperationAdd("README.md", card.encode()))
        api.preupload_lfs_files(repo_id, operations, revision=revision, create_pr=create_pr)
        commit = _retry(
            api.create_commit,
            repo_id,
            operations,
            commit_message=commit_message or "Upload DDIM model",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.sha,
        )
    return commit.pr_url if create_pr else f"{url}/tree/{revision}" if revision else str(url)


def push_pipeline(
    pipeline,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    safe_serialization: bool = True,
    variant: str | None = None,
    subfolder: str | None = None,
) -> str:
    """Save `pipeline` to a temporary folder and push that; the arguments are those of diffusers' `push_to_hub`.

    Raises as `push_to_hub` does, and `ValueError` for `safe_serialization=False`: pickled weights are never pushed.
    """
    if not safe_serialization:
        raise ValueError("safe_serialization=False would push pickled weights: only safetensors are pushed")
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder, variant=variant)
        return push_to_hub(
            folder,
            repo_id,
            private=private,
            token=token,
            commit_message=commit_message,
            create_pr=create_pr,
            subfolder=subfolder,
        )


def _files_to_push(folder: Path) -> list[Path]:
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a finished run: it has no {name}, which save_pretrained writes")
    files = [file for pattern in PUSHED for file in sorted(folder.glob(pattern)) if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors"]
    if not weights:
        raise FileNotFoundError(f"{folder}/unet has no *.safetensors: save the model again with save_pretrained")
    count_parameters(weights)  # a file cut short is found here, not by those who pull it
    return files


def _content(file: Path) -> bytes | Path:
    """What goes up for `file`: the text files without this machine's paths, which diffusers and a run may record."""
    if file.name == "results.json":
        return clean(file.read_text()).encode()
    if file.suffix != ".json" or ".index." in file.name:
        return file
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    return (json.dumps(config, indent=2) + "\n").encode()


def _readme_on_hub(repo_id: str, head, token: str | None) -> str | None:
    # Asked of the listing: a failed download also looks like a missing file, and would cost the user their README.
    if not any(sibling.rfilename == "README.md" for sibling in head.siblings):
        return None
    path = _retry(hf_hub_download, repo_id, "README.md", revision=head.sha, token=token)
    return Path(path).read_bytes().decode()


# Pull


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

    Both layouts are taken: the UNet in `unet/` and the scheduler in `scheduler/`, or both at the root of the repo.

    Args:
        name: a folder on this machine, or `"user/name"` on the Hub.
        revision: a branch, a tag or a commit; main where None.
        variant: of the weights, such as `"fp16"`.
        local_files_only: ask the cache alone. Where the Hub cannot be reached, the cache is asked as well.
        use_safetensors: False takes pickled weights (which can run code of their author's); else they are refused.
        weights: False leaves the UNet's weights out, for a caller who brings a UNet.

    Raises `ValueError` for something that is not a repo id, and `OSError` (of which `FileNotFoundError`,
    `PermissionError` and `ConnectionError` are kinds) for the rest; each is one line that says what to do.
    """
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").is_file():
            _check_configs(str(name), Path(name))
        count_parameters(sorted(Path(name).glob("unet/*.safetensors")))  # finds a file cut short
        return Path(name)
    repo_id = str(name)
    suffix = "bin" if use_safetensors is False else "safetensors"
    asked = {"cache_dir": cache_dir, "force_download": force_download, "token": token}

    def download(patterns: list[str], revision: str | None) -> Path:
        with _one_clear_line(repo_id, revision, local_files_only=local_files_only):
            asked_now = asked | {"revision": revision, "local_files_only": local_files_only}
            return Path(_retry(snapshot_download, repo_id, allow_patterns=patterns, **asked_now))

    # The configs first: they say whether the weights, which may be large, are ours to load. Then the same commit.
    folder = download(CONFIGS, revision)
    _check_configs(repo_id, folder)
    if not weights:
        return folder
    names = _weight_patterns(variant, suffix)
    download(CONFIGS + [where + name for where in ("unet/", "") for name in names], folder.name)
    files = [file for where in ("unet/", "") for name in names for file in folder.glob(where + name)]
    if not files:
        _refuse_weights(repo_id, folder.name, variant, suffix, local_files_only, token)
    count_parameters([file for file in files if file.suffix == ".safetensors"])  # finds a file cut short
    return folder


def load_model(pipeline_class: type, load_folder: Callable, name: str | Path, **kwargs):
    """Find the model `name` and load it: the body of `DDIMCustomPipeline.from_pretrained`, which takes these `kwargs`.

    A folder with `model_index.json` goes to `load_folder`, diffusers' own `from_pretrained`. The oldest layout has no
    index: its UNet and its scheduler's config lie at the root, and are loaded here. Raises as `resolve_model` does.
    """
    kwargs["use_safetensors"] = kwargs.get("use_safetensors") is not False  # None too: a pickle only where asked for
    hub = {key: kwargs.pop(key) for key in KEYWORDS if key in kwargs}
    weights = {key: kwargs.get(key) for key in ("variant", "use_safetensors")}
    folder = resolve_model(name, weights="unet" not in kwargs, **hub, **weights)
    if (folder / "model_index.json").is_file():
        return load_folder(folder, **kwargs)
    unet, scheduler = kwargs.pop("unet", None), kwargs.pop("scheduler", None)
    if scheduler is None:
        scheduler = DDIMSchedulerCustom.from_config(json.loads((folder / "scheduler_config.json").read_text()))
    return pipeline_class(unet or UNet2DModel.from_pretrained(folder, **kwargs), scheduler)


def _check_configs(repo_id: str, folder: Path) -> None:
    unet = next((folder / name for name in ("unet/config.json", "config.json") if (folder / name).is_file()), None)
    if unet is None:
        raise FileNotFoundError(f"{repo_id} has no UNet: neither unet/config.json nor config.json is there")
    kind = json.loads(unet.read_text()).get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{repo_id} holds a {kind}: only unconditional models (UNet2DModel) can be loaded")
    if not any((folder / name).is_file() for name in ("scheduler/scheduler_config.json", "scheduler_config.json")):
        raise FileNotFoundError(f"{repo_id} has a UNet but no scheduler_config.json: its noise schedule is unknown")


def _weight_patterns(variant: str | None, suffix: str) -> list[str]:
    name, part, dot = "diffusion_pytorch_model", "?????-of-?????", f".{variant}" if variant else ""
    patterns = [f"{name}{dot}.{suffix}", f"{name}{dot}-{part}.{suffix}", f"{name}.{suffix}.index{dot}.json"]
    return patterns + ([f"{name}-{part}{dot}.{suffix}"] if variant else [])


def _refuse_weights(repo_id, commit, variant, suffix, local_files_only, token) -> None:
    """Say why there are none: another variant, pickles alone, or nothing at all."""
    of_variant = f" of variant {variant!r}" if variant else ""
    if local_files_only:
        raise FileNotFoundError(f"{repo_id} has no *.{suffix} weights{of_variant} in the cache: load it once online")
    with _one_clear_line(repo_id, commit):
        names = _retry(HfApi(token=token).list_repo_files, repo_id, revision=commit)
    weights = [name for name in names if re.fullmatch(r"(unet/)?diffusion_pytorch_model.*\.(safetensors|bin)", name)]
    if suffix == "safetensors" and weights and all(name.endswith(".bin") for name in weights):
        raise OSError(
            f"{repo_id} holds pickled weights alone ({weights[0]}), which can run code of their author's: "
            "ask the author for safetensors, or, if you trust them, pass use_safetensors=False"
        )
    there = f"it has {', '.join(weights)}" if weights else "it has no UNet weights of any kind"
    raise FileNotFoundError(f"{repo_id} has no *.{suffix} weights{of_variant}: {there}")


# Errors


def _retry(call: Callable, *args, **kwargs):
    """Ask again where the Hub says 429 or 5xx: the client does so for uploads and downloads, not for these calls."""
    for wait in (*RETRY_WAITS, None):
        try:
            return call(*args, **kwargs)
        except (HTTPError, OSError) as error:
            response = _response(error)
            if wait is None or response is None or response.status_code not in TRANSIENT:
                raise
            asked = response.headers.get("Retry-After", "")
            time.sleep(min(max(wait, float(asked) if asked.isdigit() else 0.0), 60.0))


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException):
    return next((cause.response for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


@contextmanager
def _one_clear_line(repo_id: str, revision: str | None, push: bool = False, local_files_only: bool = False):
    """Turn what huggingface_hub raises, often several lines deep in another error, into one line that helps."""
    try:
        yield
    except (HFValidationError, HTTPError, OSError, RuntimeError) as error:
        raise _explained(error, repo_id, revision, push, local_files_only) from error


def _explained(error: Exception, repo_id: str, revision: str | None, push: bool, local_files_only: bool) -> Exception:
    response, causes = _response(error), list(_causes(error))
    status = response.status_code if response is not None else None
    first_line = (str(causes[-1]).strip() or type(causes[-1]).__name__).splitlines()[0]
    log_in = "run `hf auth login`, set HF_TOKEN, or pass token=..."

    if isinstance(error, HFValidationError):
        here = "" if push else "neither a folder here nor a repo id; a repo id is "
        return ValueError(
            f"{repo_id!r} is {here or 'not a repo id: it must be '}'user/name' of letters, digits, - _ and ."
        )
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return PermissionError(f"{repo_id} is gated: ask for access at {constants.ENDPOINT}/{repo_id}, then {log_in}")
    if status == 401 and (push or "Invalid credentials" in response.headers.get("X-Error-Message", "")):
        why = (
            "the Hub does not accept this token"
            if "Authorization" in response.request.headers
            else "there is no token"
        )
        return PermissionError(f"{why}: make one with {'write' if push else 'read'} access, then {log_in}")
    if status == 403:
        made = f"make one with write access at {constants.ENDPOINT}/settings/tokens" if push else "use one that may"
        return PermissionError(f"this token may not {'write to' if push else 'read'} {repo_id}: {made}, then {log_in}")
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return OSError(
            f"{repo_id} has no branch, tag or commit {revision!r}: see {constants.ENDPOINT}/{repo_id}/tree/main"
        )
    if status in (401, 404) or any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return FileNotFoundError(
            f"{repo_id} is neither a folder here nor a model at {constants.ENDPOINT}: "
            f"check the name; if it is private, {log_in}"
        )
    if status in (409, 412):
        return OSError(
            f"{repo_id} changed while this push was under way: look at {constants.ENDPOINT}/{repo_id}, then push again"
        )
    if status == 429:
        return OSError(
            f"{constants.ENDPOINT} limits how often it may be asked (HTTP 429): wait some minutes and run this again"
        )
    if status is not None:
        return OSError(
            f"{constants.ENDPOINT} failed on {repo_id} (HTTP {status}): nothing was changed; run this again later"
        )
    if local_files_only:
        return FileNotFoundError(
            f"{repo_id} is not in the cache, or not wholly: load it once without local_files_only"
        )
    if "Consistency check failed" in str(error):
        return OSError(f"the download of {repo_id} was truncated: run this again with force_download=True")
    if any(isinstance(cause, (HTTPError, ConnectionError, LocalEntryNotFoundError)) for cause in causes):
        here = "" if push else f"there is no folder {repo_id!r} here, and "
        return ConnectionError(
            f"{here}no connection to {constants.ENDPOINT} ({first_line}): check the network and run this again"
        )
    return OSError(first_line) if isinstance(error, RuntimeError) else error
