"""The model card: what a run recorded, and nothing else, for whoever finds the model on the Hub."""

import json
import math
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import RepoCard
from huggingface_hub.repocard_data import CardData
from safetensors import SafetensorError, safe_open

from ..metrics import DISTANCES, GENERAL, NAMES

BEGIN = "<!-- ddim_hf:begin (each push rewrites what stands between these two marks, and nothing else) -->"
END = "<!-- ddim_hf:end -->"
# The innermost begin..end pair, so that a mark which lost its partner swallows none of the user's text.
MARKED = re.compile(r"<!-- ddim_hf:begin(?:(?!<!-- ddim_hf:begin).)*?<!-- ddim_hf:end -->", re.DOTALL)

TASK = "unconditional-image-generation"
PROTOCOL = [  # how a value was measured, in the order in which the card shows it
    *("num_images", "num_reference", "num_inference_steps", "eta", "tau", "variance", "mode", "reference", "split"),
    *("seed", "implementation", "network", "feature_extractor", "feature_extractor_hash", "weights_hash"),
]
NETWORK = [
    *("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "down_block_types"),
    *("up_block_types", "attention_head_dim", "norm_num_groups", "dropout"),
]
SCHEDULE = [
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample"),
    *("set_alpha_to_one", "timestep_spacing", "skip_type", "variance", "x0_formula", "rescale_betas_zero_snr"),
]
# Settings that say where a run is and how it is watched, not what it computes.
HIDDEN = re.compile(r"^_|token|_dir$|push_to_hub|^hub_|checkpoint|^logg|^dry_run")

LOAD = """With ddim_hf, which samples, encodes, reconstructs and interpolates:

```python
from ddim_hf import DDIMCustomPipeline

pipeline = DDIMCustomPipeline.from_pretrained("{name}")
image = pipeline(num_inference_steps=50).images[0]
```

With diffusers alone:

```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{name}")
image = pipeline(num_inference_steps=50).images[0]
```"""

CITATION = """```bibtex
@inproceedings{song2021denoising,
  title     = {Denoising Diffusion Implicit Models},
  author    = {Jiaming Song and Chenlin Meng and Stefano Ermon},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  url       = {https://arxiv.org/abs/2010.02502}
}
```"""


def write_model_card(folder: str | Path, *, repo_id: str | None = None) -> Path:
    """Write `README.md` in `folder`, from what the run recorded there, and return its path.

    Read are `unet/`, `scheduler/`, and where there `config.json` (the training configuration), `results.json` (the
    measurements) and `samples.png`. Of a README that is there already, only our own marked part is rewritten.
    """
    path = Path(folder) / "README.md"
    path.write_bytes(model_card(folder, repo_id=repo_id).encode())
    return path


def model_card(folder: str | Path, *, repo_id: str | None = None, existing: str | None = None) -> str:
    """The card of the model in `folder`, merged into the text of `existing` (the folder's own README where None).

    Text outside our marks is kept byte for byte. Metadata: what `existing` says stands, lists are united, and the
    results under this model's name, or its folder's, are replaced by those in `results.json`.
    """
    folder = Path(folder)
    if existing is None and (folder / "README.md").is_file():
        existing = (folder / "README.md").read_bytes().decode()
    name = repo_id or folder.resolve().name
    config, results = _read(folder / "config.json"), _read(folder / "results.json").get("results", [])
    results = [row for row in results if not str(row.get("implementation")).startswith("real images")]
    data = _metadata(name, config, results)
    body = f"{BEGIN}\n{_body(folder, name, config, results)}\n{END}"
    if not existing:
        return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))

    try:
        theirs = RepoCard(existing if existing.lstrip().startswith("---") else f"---\n\n---\n{existing}")
    except Exception as error:  # the YAML reader's own, or ValueError
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the README.md of {name} begins with metadata that is not YAML ({reason}): mend it"
        ) from error
    text, replaced = MARKED.subn(lambda _: body, theirs.text, count=1)
    theirs.text = text if replaced else f"{text}\n\n{body}\n"
    theirs.data = CardData(**_merged({name, folder.resolve().name}, data.to_dict(), theirs.data.to_dict()))
    return str(theirs)


def _merged(names: set[str], ours: dict, theirs: dict) -> dict:
    merged = ours | theirs
    for key in ("tags", "datasets"):
        lists = [[value] if isinstance(value, str) else value for value in (theirs.get(key, []), ours.get(key, []))]
        if any(lists):
            merged[key] = list(dict.fromkeys(lists[0] + lists[1]))
    index = [entry for entry in theirs.get("model-index") or [] if entry.get("name") not in names]
    merged["model-index"] = index + ours.get("model-index", []) or None
    return merged


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def count_parameters(files: list[Path]) -> int:
    """The number of weights in safetensors files, from their headers; `OSError` for a file that is cut short."""
    total = 0
    for file in files:
        try:
            with safe_open(file, "np") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
        except SafetensorError as error:
            raise OSError(f"{file} is truncated or not safetensors ({error}): save or download it again") from error
    return total


# Metadata


def _metadata(name: str, config: dict, results: list[dict]) -> ModelCardData:
    dataset = config.get("dataset_name")
    on_hub = isinstance(dataset, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(?<!\.parquet)", dataset)
    on_hub = on_hub and not Path(dataset).exists()
    return ModelCardData(
        license="apache-2.0",
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["diffusers", "ddim", TASK],
        datasets=[dataset] if on_hub else None,
        model_name=name,
        eval_results=[_eval_result(result, dataset) for result in results] or None,
    )


def _eval_result(result: dict, dataset: str | None) -> EvalResult:
    # The protocol stands in the metric's own arguments: those of the data set are shared by all its metrics.
    reference = clean(result.get("reference") or dataset or "the training images")
    return EvalResult(
        task_type=TASK,
        dataset_type=reference,
        dataset_name=reference,
        dataset_split=result.get("split"),
        metric_type=_kind(result),
        metric_name=_metric_name(result),
        metric_value=result["value"],
        metric_args={k: clean(result[k]) for k in PROTOCOL if result.get(k) is not None} or None,
    )


def _kind(result: dict) -> str:
    """FID and KID are distances over Inception's features; over others they go by their general names."""
    inception = "inception" in (result.get("feature_extractor") or "inception").lower()
    return result["metric"] if inception else GENERAL.get(result["metric"], result["metric"])


def _metric_name(result: dict) -> str:
    name = NAMES.get(_kind(result), result["metric"])
    extractor = result.get("feature_extractor")
    return f"{name} over {extractor}" if extractor and _kind(result).endswith("_distance") else name


# Text


def _body(folder: Path, name: str, config: dict, results: list[dict]) -> str:
    unet, scheduler = _read(folder / "unet/config.json"), _read(folder / "scheduler/scheduler_config.json")
    sections = {
        f"# {name.split('/')[-1]}": _introduction(unet),
        "## Load it": LOAD.format(name=name) + _ignored_by_diffusers(scheduler),
        "## Samples": "![Samples](samples.png)" if (folder / "samples.png").is_file() else "",
        "## Results": _results(results),
        "## Network": _network(folder, unet),
        "## Noise schedule": _table([{"setting": k, "value": scheduler[k]} for k in SCHEDULE if k in scheduler]),
        "## Training": _training(config),
        "## Limits": _limits(unet, results),
        "## How to reproduce": _reproduce(config),
        "## Citation": CITATION,
    }
    return "\n\n".join(f"{heading}\n\n{text}" for heading, text in sections.items() if text)


def _introduction(unet: dict) -> str:
    of_size = _size(unet)
    return (
        f"A diffusion model that makes images{f' of {of_size}' if of_size else ''} from noise alone, sampled with "
        "Denoising Diffusion Implicit Models ([Song, Meng, Ermon 2020](https://arxiv.org/abs/2010.02502))."
    )


def _ignored_by_diffusers(scheduler: dict) -> str:
    own = ", ".join(f"`{key}`" for key in ("skip_type", "variance", "x0_formula") if key in scheduler)
    return f"\n\ndiffusers ignores what the scheduler's config holds for ddim_hf alone: {own}." if own else ""


def _size(unet: dict) -> str:
    size, channels = unet.get("sample_size"), unet.get("out_channels")
    height, width = size if isinstance(size, list) else (size, size)
    return f"{height}x{width} pixels and {channels} channel{'s' * (channels != 1)}" if size and channels else ""


def _results(results: list[dict]) -> str:
    if not results:
        return "No metric has been measured on this model."
    groups: dict[str, list[dict]] = {}
    for row in results:
        groups.setdefault(_metric_name(row), []).append(row)
    return "\n\n".join(_values(name, rows) for name, rows in groups.items())


def _values(name: str, rows: list[dict]) -> str:
    """The values of one metric, with the settings that differ; what all share is said once."""
    names, numbers = ("implementation", "tau", "variance"), ("eta", "num_inference_steps")
    rows = sorted(
        rows, key=lambda row: ([row.get(key) or "" for key in names], [row.get(key) or 0 for key in numbers])
    )
    shared = {key: rows[0].get(key) for key in PROTOCOL if len({_shown(row.get(key)) for row in rows}) == 1}
    said = [f"{key} {_shown(value)}" for key, value in shared.items() if value is not None]
    table = _table([{k: row.get(k) for k in PROTOCOL if k not in shared} | {"value": row["value"]} for row in rows])
    return f"{': '.join([f'**{name}**', *([', '.join(said)] if said else [])])}\n\n{table}"


def _network(folder: Path, unet: dict) -> str:
    files = sorted((folder / "unet").glob("*.safetensors"))
    # Variants hold the same weights again: one is counted, and the parts of a split file are added up.
    main = [file for file in files if re.fullmatch(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors", file.name)]
    counted, size = count_parameters(main or files[:1]), sum(file.stat().st_size for file in main or files[:1])
    stated = (
        f"`{unet.get('_class_name', 'UNet2DModel')}`, {counted:,} parameters, {size / 1e6:,.1f} MB as safetensors."
    )
    return (
        f"{stated}\n\n{_table([{'setting': key, 'value': unet[key]} for key in NETWORK if unet.get(key) is not None])}"
    )


def _training(config: dict) -> str:
    shown = {key: value for key, value in config.items() if value is not None and not HIDDEN.search(key)}
    for key in ("versions", "command", "git_commit"):  # these stand under "How to reproduce"
        shown.pop(key, None)
    return _table([{"setting": key, "value": value} for key, value in shown.items()])


def _limits(unet: dict, results: list[dict]) -> str:
    limits = ["It takes no prompt and no class: it draws from what it was trained on, with that data's biases."]
    if size := _size(unet):
        limits.append(f"It was trained for images of {size}; other sizes are outside what it has seen.")
    few = sorted(
        {r["num_images"] for r in results if r["metric"] in DISTANCES and r.get("num_images", 50_000) < 50_000}
    )
    if few:
        counts = ", ".join(f"{count:,}" for count in few)
        limits.append(f"Distances over {counts} images are not comparable with published ones over 50,000.")
    others = {r["feature_extractor"] for r in results if r["metric"] in DISTANCES and r.get("feature_extractor")}
    if others := sorted(name for name in others if "inception" not in name.lower()):
        limits.append(f"Distances over the features of {', '.join(others)} are not FID, nor comparable with it.")
    return "\n".join(f"- {limit}" for limit in limits)


def _reproduce(config: dict) -> str:
    lines = [f"```bash\n{clean(config['command'])}\n```"] if config.get("command") else []
    if config.get("git_commit"):
        lines.append(f"At commit `{config['git_commit']}` of ddim_hf.")
    if config.get("versions"):
        lines.append(
            "With " + ", ".join(f"{package} {version}" for package, version in config["versions"].items()) + "."
        )
    return "\n\n".join(lines)


def _table(rows: list[dict]) -> str:
    """A Markdown table of `rows`, without the columns that no row fills."""
    columns = [key for key in (rows[0] if rows else ()) if any(row[key] is not None for row in rows)]
    lines = [columns, ["---"] * len(columns)] + [[_shown(row[key]) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if columns else ""


def _shown(value) -> str:
    """`value` for a table's cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "" if value is None else str(clean(str(value))).replace("|", "\\|").replace("\n", " ")


def clean(value):
    """Text without the tokens and the folders of the author's machine that a command or a path may hold."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<![\w:/])/(?:[^\s/'\"]+/)+([^\s/'\"]+)", r"\1", re.sub(r"hf_\w{8,}", "$HF_TOKEN", value))
