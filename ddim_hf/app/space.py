"""The page as a Space of the Hub: a README, requirements, three lines of Python, and this package's own files."""

import warnings
from importlib.metadata import requires, version
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from packaging.requirements import Requirement

from ..hub.errors import one_clear_line, retry

PACKAGE = Path(__file__).parents[1]
PYTHON = "3.11"  # the oldest that this package runs on; a Space's own is older
README = """---
title: {title}
emoji: 🖼️
colorFrom: indigo
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
models:
- {model}
---

Sample, compare, encode and interpolate with [{model}](https://huggingface.co/{model}), by Denoising Diffusion Implicit
Models ([Song, Meng, Ermon 2020](https://arxiv.org/abs/2010.02502)) and ddim_hf.
"""
APP = '''"""The page of {model}."""

from ddim_hf.app.serving import serve

serve("{model}")
'''


def push_space(
    repo_id: str, model: str, *, package: str | None = None, private: bool | None = None, token: str | None = None
) -> str:
    """Push the page of a Hub model as a Space, in one commit, and return its address.

    Args:
        repo_id: `"name"` or `"user/name"` of the Space; made where it does not exist.
        model: its id on the Hub. The Space loads it as anyone may, or with a token that is its secret HF_TOKEN: a
            model that is private or gated is pushed with a warning that it needs that.
        package: a requirement that brings ddim_hf, such as `"ddim_hf @ git+https://host/org/ddim_hf"`; by default the
            files of the installed package go up with the page.
        private: who may see a Space that this call makes.
        token: one with write access; the stored one where None.

    Files of ddim_hf that an earlier push has left there go; README.md, requirements.txt and app.py are written anew.

    Raises ValueError or OSError (of which PermissionError and ConnectionError are kinds), in one line.
    """
    if Path(model).is_dir():
        raise ValueError(f"{model} is a folder; allowed: a model on the Hub, where examples/push_to_hub.py pushes it")
    api = HfApi(token=token)
    with one_clear_line(model, None):
        found = retry(api.model_info, model)
    if found.private or found.gated:
        kind = "private" if found.private else "gated"
        warnings.warn(
            f"{model} is {kind}, and the Space cannot load it by itself: make the model public, or set the secret "
            "HF_TOKEN, a token that may read it, in the Space's settings",
            stacklevel=2,
        )
    with one_clear_line(repo_id, None, push=True):
        url = retry(api.create_repo, repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        repo_id = url.repo_id
        head = retry(api.repo_info, repo_id, repo_type="space")
        files = space_files(repo_id, model, package)
        stale = [one.rfilename for one in head.siblings if one.rfilename.startswith("ddim_hf/")]
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        operations += [CommitOperationDelete(path) for path in stale if path not in files]
        retry(
            api.create_commit,
            repo_id,
            operations,
            commit_message=f"The page of {model}",
            repo_type="space",
            parent_commit=head.sha,
        )
    return str(url)


def space_files(repo_id: str, model: str, package: str | None = None) -> dict[str, bytes]:
    """The content of a Space by path; see `push_space`."""
    gradio = version("gradio")
    needed = [package] if package else _core_requirements()
    texts = {
        "README.md": README.format(title=repo_id.rpartition("/")[2], gradio=gradio, python=PYTHON, model=model),
        "requirements.txt": "\n".join([*needed, f"gradio=={gradio}"]) + "\n",
        "app.py": APP.format(model=model),
    }
    files = {path: text.encode() for path, text in texts.items()}
    if not package:
        own = (path for kind in ("*.py", "*.css", "*.js") for path in sorted(PACKAGE.rglob(kind)))
        files |= {f"ddim_hf/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in own}
    return files


def _core_requirements() -> list[str]:
    """What the installed package needs without its extras."""
    needed = map(Requirement, requires("ddim_hf"))
    return [str(requirement) for requirement in needed if "extra" not in str(requirement.marker)]
