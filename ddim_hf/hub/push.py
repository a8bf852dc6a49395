"""Models go up: what a user needs, in one commit, with a true model card."""

import json
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download

from ..files import read_json
from .errors import one_clear_line, retry
from .model_card import model_card
from .redaction import redact
from .weights import NAME, count_parameters, loaded_weights, variant_of, weight_patterns

PUSHED = [
    *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
    *(f"unet/{NAME}.safetensors.index*.json", "samples.png", "results.json"),
]


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    license: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Push a finished run, or any folder that `save_pretrained` wrote, as one commit.

    What goes up is `model_index.json`, the scheduler's and the UNet's configs, the UNet's safetensors, `samples.png`
    and `results.json` where there, and the model card. Checkpoints, logs and pickled weights stay behind. Weights that
    the repo has in their place go, whole or in parts; a warning names other weights that stay. The samples and results
    of the repo stay where `folder` has none: the card says which of the results are of these weights, and if others
    were there before, a warning names the files. Nothing in `folder` is changed: a push that fails can be run again,
    and its error carries a note that says how.

    Args:
        folder: holds `model_index.json`, `scheduler/` and `unet/`.
        repo_id: `"name"` or `"user/name"`; made where it does not exist.
        private: who may see a repo that this call makes; no effect on one that exists.
        license: the Hub's name of the weights' license, such as `"mit"`; where None, what the README says, or nothing.
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
    if subfolder and license:
        raise ValueError("license is given with subfolder, where no card is written; allowed: one of them")
    options = {
        "private": private,
        "license": license,
        "commit_message": commit_message,
        "revision": revision,
        "create_pr": create_pr or None,
        "subfolder": subfolder,
    }
    api = HfApi(token=token)
    try:
        with one_clear_line(repo_id, revision, push=True):
            url = retry(api.create_repo, repo_id, private=private, exist_ok=True)
            repo_id = url.repo_id
            if revision is not None:
                retry(api.create_branch, repo_id, branch=revision, exist_ok=True)
            head = retry(api.repo_info, repo_id, revision=revision)

            prefix = f"{subfolder}/" if subfolder else ""
            operations = [
                CommitOperationAdd(prefix + file.relative_to(folder).as_posix(), _content(file)) for file in files
            ]
            there = [sibling.rfilename for sibling in head.siblings]
            kept = {prefix + name for name in ("samples.png", "results.json")}.intersection(there)
            kept -= {operation.path_in_repo for operation in operations}
            same = not kept or _has_weights(api, repo_id, head, operations)
            if not same:
                names = " and ".join(sorted(kept))
                warnings.warn(f"the repo keeps {names} from before, which may be of other weights", stacklevel=2)
            if not subfolder:
                theirs = _text_on_hub(repo_id, "README.md", head, token)
                rows = (
                    _rows(_text_on_hub(repo_id, "results.json", head, token), same) if "results.json" in kept else []
                )
                card = model_card(folder, repo_id=repo_id, existing=theirs, license=license, results=rows)
                operations.append(CommitOperationAdd("README.md", card.encode()))
            api.preupload_lfs_files(repo_id, operations, revision=revision, create_pr=create_pr)
            operations += _deletions(there, {operation.path_in_repo for operation in operations}, f"{prefix}unet/")
            # The commit names the one it was made from: had the repo moved on, the Hub refuses it; a repeat is safe.
            commit = retry(
                api.create_commit,
                repo_id,
                operations,
                commit_message=commit_message or "Upload DDIM model",
                revision=revision,
                create_pr=create_pr,
                parent_commit=head.sha,
            )
    except BaseException as error:  # a stop by Ctrl-C too
        error.add_note(f"the model lies in {folder}; to retry: {retry_command(folder, repo_id, **options)}")
        raise
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
    *,
    license: str | None = None,
) -> str:
    """Save `pipeline` to a temporary folder and push that; the first arguments are those of diffusers' `push_to_hub`.

    Raises as `push_to_hub` does, and `ValueError` for `safe_serialization=False`: pickled weights are never pushed.
    The folder of a push that failed stays, and the error's note names it.
    """
    if not safe_serialization:
        raise ValueError("safe_serialization=False would push pickled weights: only safetensors are pushed")
    folder = Path(tempfile.mkdtemp(prefix="ddim_hf-push-"))
    try:
        pipeline.save_pretrained(folder, variant=variant)
    except BaseException:
        shutil.rmtree(folder)
        raise
    url = push_to_hub(
        folder,
        repo_id,
        private=private,
        license=license,
        token=token,
        commit_message=commit_message,
        create_pr=create_pr,
        subfolder=subfolder,
    )
    shutil.rmtree(folder)
    return url


def retry_command(folder: str | Path, repo_id: str, **options: str | bool | None) -> str:
    """The shell command that pushes a folder again, from anywhere; `options` are `push_to_hub`'s."""
    arguments = [json.dumps(str(Path(folder).resolve())), json.dumps(repo_id)]
    arguments += [
        f"{name}={json.dumps(value) if isinstance(value, str) else value}"
        for name, value in options.items()
        if value is not None
    ]
    call = f"from ddim_hf.hub import push_to_hub; print(push_to_hub({', '.join(arguments)}))"
    return shlex.join([sys.executable, "-c", call])


def _files_to_push(folder: Path) -> list[Path]:
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a finished run: it has no {name}, which save_pretrained writes")
    files = [file for pattern in PUSHED for file in sorted(folder.glob(pattern)) if file.is_file()]
    weights = loaded_weights(folder / "unet")
    if not weights:
        raise FileNotFoundError(f"{folder}/unet has no {NAME}*.safetensors: save the model again with save_pretrained")
    count_parameters(weights)  # a file cut short is found here, not by those who pull it
    return files + weights


def _deletions(there: Iterable[str], pushed: set[str], unet: str) -> list[CommitOperationDelete]:
    """What goes of a repo's weights: those of the variants that are pushed, which loading would find before these."""
    variants = {variant_of(Path(name).name) for name in pushed if name.endswith(".safetensors")}
    patterns = [unet + name for variant in variants for name in weight_patterns(variant, "safetensors")]
    others = [name for name in there if fnmatch(name, f"{unet}{NAME}*") and name not in pushed]
    replaced = [name for name in others if any(fnmatch(name, pattern) for pattern in patterns)]
    if kept := [name for name in others if name not in replaced and not name.endswith(".json")]:
        warnings.warn(f"the repo keeps other weights from before, which may be old: {', '.join(kept)}", stacklevel=3)
    return [CommitOperationDelete(name) for name in replaced]


def _content(file: Path) -> bytes | Path:
    """What goes up for `file`: configs and results without this machine's paths, which diffusers and a run record."""
    if file.suffix != ".json" or ".index." in file.name:
        return file
    content = read_json(file)
    content.pop("_name_or_path", None)
    return (json.dumps(redact(content), indent=2) + "\n").encode()


def _has_weights(api: HfApi, repo_id: str, head, operations: list[CommitOperationAdd]) -> bool:
    """Whether the weights that are pushed are in the repo already, byte for byte."""
    pushed = {one.path_in_repo: one.upload_info.sha256.hex() for one in operations}
    weights = [name for name in pushed if name.endswith(".safetensors")]
    found = retry(api.get_paths_info, repo_id, weights, revision=head.sha)
    there = {file.path: file.lfs.sha256 for file in found if file.lfs}
    return all(there.get(name) == pushed[name] for name in weights)


def _rows(results: str, same: bool) -> list[dict[str, Any]]:
    """The figures in a repo's results.json; of other weights than the `same`, those that say whose they are."""
    try:
        rows = json.loads(results)["results"]
        rows = [row for row in rows if {"metric", "value"} <= row.keys()]
    except (ValueError, LookupError, TypeError, AttributeError):  # a file of another program's
        return []
    return [row for row in rows if same or row.get("weights_hash") or row.get("images_hash")]


def _text_on_hub(repo_id: str, name: str, head, token: str | None) -> str | None:
    # Asked of the listing: a failed download also looks like a missing file, and would cost the user their README.
    if not any(sibling.rfilename == name for sibling in head.siblings):
        return None
    path = retry(hf_hub_download, repo_id, name, revision=head.sha, token=token)
    return Path(path).read_bytes().decode()
