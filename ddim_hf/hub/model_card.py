"""The model card: what a run recorded, and nothing else, for whoever finds the model on the Hub."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import RepoCard
from huggingface_hub.repocard_data import CardData

from ..data.cache import digest
from ..files import read_json
from ..generation import describe_scheduler
from ..reports.markdown import grid, shown, table
from ..reports.metrics import CELL, DISTANCES, GENERAL, MEASURED, NAMES
from ..unet import weights_hash
from .pull import load_configs
from .redaction import redact, redact_command
from .weights import count_parameters, main_weights, variant_of

BEGIN = "<!-- ddim_hf:begin (each push rewrites what stands between these two marks, and nothing else) -->"
END = "<!-- ddim_hf:end -->"
# The innermost begin..end pair, so that a mark which lost its partner swallows none of the user's text.
MARKED = re.compile(r"<!-- ddim_hf:begin(?:(?!<!-- ddim_hf:begin).)*?<!-- ddim_hf:end -->", re.DOTALL)

TASK = "unconditional-image-generation"
HEADLINES = 4  # figures in the metadata, which the Hub shows beside the card

# How a figure was measured, and how the card says it: the rest of a row is the sampler, in the grid, or no protocol.
PROTOCOL = {
    "num_images": "{:,} images",
    "num_reference": "{:,} reference images",
    "reference": "{}",
    "split": "{} split",
    "implementation": "{}",
    "network": "{}",
    "tau": "{} tau",
    "mode": "{} mode",
    "seed": "seed {}",
    "feature_extractor_hash": "features {}",
    "reference_hash": "reference {}",
    "images_hash": "images {}",
    "weights_hash": "weights {}",
}
HEADLINE_PROTOCOL = [
    *("num_images", "num_inference_steps", "eta", "variance", "guidance_scale", "guidance_interval", "tau", "mode"),
    "seed",
    "guide_model",
    "guide",
]
HEADLINE_DEFAULTS = {"variance": "sigma", "seed": 0}  # which are not said
NO_PROTOCOL = ("metric", "model", "feature_extractor", *MEASURED, *CELL)
HASH = re.compile(r"[0-9a-f]{32,}")  # shortened to its first 12 digits

NETWORK = [
    *("sample_size", "block_out_channels", "layers_per_block", "down_block_types"),
    *("up_block_types", "attention_head_dim", "norm_num_groups", "dropout"),
]
SCHEDULE = [
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample"),
    *("set_alpha_to_one", "timestep_spacing", "skip_type", "variance", "x0_formula", "rescale_betas_zero_snr"),
]
# Settings that say where a run is and how it is watched, not what it computes; what stands elsewhere on the card.
HIDDEN = re.compile(
    r"^_|token|_dir$|push_to_hub|^hub_|checkpoint|^logg|^dry_run|^refresh|^eval_batch|fingerprint|on_hub$|^label_names$"
    r"|^(versions|command|git_commit|machine|num_processes|num_parameters|sharded|max_cached_bytes|data_on_device)$"
)
# What a setting's value leaves without effect, often the setting itself.
IDLE = [
    ("samplers", "none", ["feature_extractor", "inception_weights", "samplers"]),
    ("validation_split", "none", ["validation_steps", "validation_images", "validation_split"]),
    ("gradient_accumulation_steps", 1, ["gradient_accumulation_steps"]),
    ("mixed_precision", "no", ["mixed_precision"]),
    ("ema_decay", "none", ["ema_decay"]),
    *((name, 0, [name]) for name in ("dropout", "weight_decay", "lr_warmup_steps")),
    ("beta_schedule", "squaredcos_cap_v2", ["beta_start", "beta_end"]),
    ("skip_type", "quad", ["timestep_spacing"]),
    ("rescale_betas_zero_snr", False, ["rescale_betas_zero_snr"]),
]
STOCK = "diffusers' own pipeline"
UNMEASURED = "No metric has been measured on this model."
OF_OTHERS = "Measured too, but not on these weights:"
OTHERWISE = "Measured too on these weights, but by settings or a fitted schedule that the scheduler no longer has:"

LOAD = """```python
from ddim_hf import DDIMCustomPipeline

pipeline = DDIMCustomPipeline.from_pretrained("{address}"{variant})
image = pipeline(num_inference_steps=50).images[0]
```

With diffusers alone:

```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{address}"{variant})
image = pipeline(num_inference_steps=50).images[0]
```"""
LOAD_CLASSES = """```python
from ddim_hf import DDIMCustomPipeline

pipeline = DDIMCustomPipeline.from_pretrained("{address}"{variant})
images = pipeline(class_labels=[{name}] * 4, {guidance}num_inference_steps=50).images
```

With diffusers alone, whose pipeline passes no labels on and raises "class_labels should be provided when doing class
conditioning", the network is given them beforehand:

```python
from functools import partial

import torch
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{address}"{variant})
pipeline.unet.forward = partial(pipeline.unet.forward, class_labels=torch.tensor([0] * 4))
images = pipeline(batch_size=4, num_inference_steps=50).images
```"""
NAMED = 100  # classes that the card names one by one

CITATION = """```bibtex
@inproceedings{song2021denoising,
  title     = {Denoising Diffusion Implicit Models},
  author    = {Jiaming Song and Chenlin Meng and Stefano Ermon},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  url       = {https://arxiv.org/abs/2010.02502}
}
```"""


def write_model_card(folder: str | Path, *, repo_id: str | None = None, license: str | None = None) -> Path:
    """Write `README.md` in `folder`, from what the run recorded there, and return its path.

    Read are `unet/`, `scheduler/`, and where there `config.json` (the training configuration), `choice.json` (which of
    its averages this is), `results.json` (the measurements) and `samples.png`. Of a README that is there already, only
    our own marked part is rewritten.
    """
    path = Path(folder) / "README.md"
    path.write_bytes(model_card(folder, repo_id=repo_id, license=license).encode())
    return path


def model_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    existing: str | None = None,
    license: str | None = None,
    results: Sequence[dict[str, Any]] = (),
) -> str:
    """The card of the model in `folder`, merged into the text of `existing` (the folder's own README where None).

    Text outside our marks is kept byte for byte. Metadata: what `existing` says stands, but for a license that is
    given; lists are united; the results under this model's name, or its folder's, are replaced by those in
    `results.json`, or in `results` where the folder has none. Without `license` and without the README's own, the
    card names none.
    """
    folder = Path(folder)
    if existing is None and (folder / "README.md").is_file():
        existing = (folder / "README.md").read_bytes().decode()
    name = repo_id or folder.resolve().name
    config, rows = _recorded(folder / "config.json"), _recorded(folder / "results.json").get("results", results)
    rows = [row for row in rows if not str(row.get("implementation")).startswith("real images")]  # not the model's
    scheduler = _recorded(folder / "scheduler/scheduler_config.json")
    own, others = _by_model(rows, folder)
    data = _metadata(name, license, config, _headlines(own, scheduler.get("skip_type", "uniform")))
    body = f"{BEGIN}\n{_body(folder, repo_id, config, scheduler, own, others)}\n{END}"
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
    if license:
        theirs.data.license = license
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


def _by_model(rows: list[dict], folder: Path) -> tuple[list[dict], dict[str, list[dict]]]:
    """The rows of the model in a folder; and the others by what they are: of earlier weights, of another model, of
    some images, or of these weights but by another scheduler.

    Rows from before version 0.2 do not tell whose they are, and count as the model's own.
    """
    if not any(row.get("weights_hash") for row in rows):
        own = [row for row in rows if not row.get("images_hash")]
        return own, {OF_OTHERS: [row for row in rows if row not in own]}
    # As an evaluation loads them
    unet = UNet2DModel.from_pretrained(folder / "unet", variant=_variant(folder), use_safetensors=True)
    hash_here = weights_hash(unet)
    _, scheduler, _ = load_configs(folder)
    fitted = (scheduler["calibrated_schedules"] or {}).get("schedules", {}).values()
    known = {"scheduler": [describe_scheduler(scheduler)]}
    known["schedule"] = [digest({key: one[key] for key in ("timesteps", "weights")}) for one in fitted]

    of_weights = [row for row in rows if (row.get("weights_hash") or row.get("images_hash")) in (None, hash_here)]
    own = [row for row in of_weights if all(row[key] in known[key] for key in known if key in row)]
    return own, {
        OTHERWISE: [row for row in of_weights if row not in own],
        OF_OTHERS: [row for row in rows if row not in of_weights],
    }


def _variant(folder: Path) -> str | None:
    """That of the weights, where there are none without one."""
    return next((variant_of(file.name) for file in main_weights(folder / "unet")), None)


def _recorded(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


# Metadata


def _metadata(name: str, license: str | None, config: dict, headlines: list[dict]) -> ModelCardData:
    # The run says what its data's name was: seen from elsewhere, a folder's looks like an id on the Hub.
    on_hub = config.get("dataset_on_hub")
    datasets = [config["dataset_name"]] if on_hub else []
    return ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["ddim"],
        datasets=datasets or None,
        model_name=name,
        eval_results=[_eval_result(row, datasets) for row in headlines] or None,
    )


def _headlines(rows: list[dict], tau: str) -> list[dict]:
    """The figures to quote: most images and least noise first, by the model's own `tau`, unguided, in order of S;
    those with a guide, which is another model, last. Of what was measured of fewer images too, the most are quoted."""
    ours = [row for row in rows if row.get("implementation") in (None, "ddim_hf")]
    kinds = list(NAMES)

    def place(row: dict) -> tuple:
        kind = kinds.index(_kind(row)) if _kind(row) in kinds else len(kinds)
        other = (row.get("tau") not in (None, tau), row.get("variance") == "sigma_hat")
        sampler = row.get("eta") or 0, row.get("guidance_scale") not in (None, 1), row.get("num_inference_steps") or 0
        return kind, row.get("guide") is not None, -(row.get("num_images") or 0), *other, *sampler

    quoted: dict[str, dict] = {}
    for row in sorted(ours, key=place):
        what = {key: value for key, value in row.items() if key not in (*MEASURED, "num_images") and value is not None}
        quoted.setdefault(json.dumps(what, sort_keys=True), row)
    return list(quoted.values())[:HEADLINES]


def _eval_result(row: dict, datasets: list[str]) -> EvalResult:
    reference, steps = redact(row.get("reference") or "the training images"), row.get("num_inference_steps")
    guided = "" if row.get("guidance_scale") in (None, 1) else f", guidance = {row['guidance_scale']:g}"
    if interval := row.get("guidance_interval"):
        guided += f" at timesteps {interval[0]:g} to {interval[1]:g}"
    if row.get("guide"):
        guided += f" away from {redact(row.get('guide_model', 'a guide'))} {row['guide'][:12]}"
    noise = f"{'sigma_hat, ' * (row.get('variance') == 'sigma_hat')}eta = {row.get('eta') or 0:g}"
    sampler = "" if steps is None else f" (S = {steps}, {noise}{guided})"
    args = {
        key: redact(row[key]) for key in HEADLINE_PROTOCOL if row.get(key) not in (None, HEADLINE_DEFAULTS.get(key))
    }
    args |= {"guide": args["guide"][:12]} if "guide" in args else {}
    return EvalResult(
        task_type=TASK,
        dataset_type=reference if reference in datasets else "other",
        dataset_name=reference,
        dataset_split=row.get("split"),
        metric_type=_kind(row),
        metric_name=_metric_name(row) + sampler,
        metric_value=float(f"{row['value']:.4g}"),
        metric_args=args or None,
    )


def _kind(row: dict) -> str:
    """FID and KID are distances over Inception's features; over others they go by their general names."""
    inception = "inception" in (row.get("feature_extractor") or "inception").lower()
    return row["metric"] if inception else GENERAL.get(row["metric"], row["metric"])


def _metric_name(row: dict) -> str:
    name, extractor = NAMES.get(_kind(row), row["metric"]), row.get("feature_extractor")
    return f"{name} over {redact(extractor)}" if extractor and _kind(row).endswith("_distance") else name


# Text


def _body(
    folder: Path, repo_id: str | None, config: dict, scheduler: dict, rows: list[dict], others: dict[str, list[dict]]
) -> str:
    unet = _recorded(folder / "unet/config.json")
    names, null_is_trained = _class_names(folder, unet), config.get("label_dropout") != 0
    picture = "![Samples](samples.png)\n\n" if (folder / "samples.png").is_file() else ""
    title = (repo_id or folder.resolve().name).split("/")[-1]
    measured_too = [f"{heading}\n\n{_results(some)}" for heading, some in others.items() if some]
    sections = {
        f"# {title}": picture + _introduction(unet, names),
        "## Load it": _load(_address(folder, repo_id), _variant(folder), names, null_is_trained)
        + _ignored_by_diffusers(scheduler),
        "## Classes": _classes(names, null_is_trained),
        "## Results": "\n\n".join([_results(rows) or UNMEASURED, *measured_too]),
        "## Network": _network(folder, unet),
        "## Noise schedule": _settings({key: scheduler[key] for key in SCHEDULE if key in scheduler}),
        "## Training": _training(config, _recorded(folder / "choice.json")),
        "## Limits": _limits(unet, names, sum(others.values(), rows)),
        "## How to reproduce": _reproduce(config),
        "## Citation": CITATION,
    }
    return "\n\n".join(f"{heading}\n\n{text}" for heading, text in sections.items() if text)


def _address(folder: Path, repo_id: str | None) -> str:
    """What loads the model: its id on the Hub, or its folder seen from the working directory, or else from itself."""
    folder, here = folder.resolve(), Path.cwd()
    return repo_id or (folder.relative_to(here).as_posix() if here in folder.parents else ".")


def _class_names(folder: Path, unet: dict) -> list[str]:
    """The names of the classes, in order, without the null class; numbers where there are none."""
    names = _recorded(folder / "model_index.json").get("id2label") or {}
    return [names.get(str(number), str(number)) for number in range((unet.get("num_class_embeds") or 1) - 1)]


def _load(address: str, variant: str | None, names: list[str], null_is_trained: bool) -> str:
    where = {"address": address, "variant": f', variant="{variant}"' if variant else ""}
    if not names:
        return LOAD.format(**where)
    guidance = "guidance_scale=1.5, " if null_is_trained else ""
    return LOAD_CLASSES.format(**where, name=json.dumps(names[0], ensure_ascii=False), guidance=guidance)


def _classes(names: list[str], null_is_trained: bool) -> str:
    """The classes, and what can be asked of the model."""
    if not names:
        return ""
    named = [f"{number} {_escape(name)}" if name != str(number) else name for number, name in enumerate(names[:NAMED])]
    more = "" if len(names) <= NAMED else f" and {len(names) - NAMED:,} more, which `pipeline.id2label` names"
    text = f"{', '.join(named)}{more}.\n\n`class_labels` takes names or numbers. "
    if not null_is_trained:
        return text + (
            f"The run has not trained the null class, {len(names)} (`label_dropout` 0): give each image a class, and "
            "leave `guidance_scale` at 1."
        )
    return text + (
        f"None is the null class, {len(names)}: an image of any class. Above 1, `guidance_scale` makes images more "
        "typical of their class, and less diverse."
    )


def _introduction(unet: dict, names: list[str]) -> str:
    size = _size(unet)
    of_size, of_classes = (f" of {size}" if size else ""), (f", of {len(names):,} classes," if names else "")
    return (
        f"A diffusion model that makes images{of_size}{of_classes} from noise alone, sampled with "
        "Denoising Diffusion Implicit Models ([Song, Meng, Ermon 2020](https://arxiv.org/abs/2010.02502))."
    )


def _ignored_by_diffusers(scheduler: dict) -> str:
    ours = ("skip_type", "variance", "x0_formula", "calibrated_schedules")
    keys = ", ".join(f"`{key}`" for key in ours if key in scheduler)
    return f"\n\ndiffusers ignores what the scheduler's config holds for ddim_hf alone: {keys}." if keys else ""


def _size(unet: dict) -> str:
    size, channels = unet.get("sample_size"), unet.get("in_channels")
    height, width = size if isinstance(size, list) else (size, size)
    return f"{height}x{width} pixels and {channels} channel{'s' * (channels != 1)}" if size and channels else ""


def _results(rows: list[dict]) -> str:
    metrics: dict[str, list[dict]] = {}
    for row in rows:
        metrics.setdefault(_metric_name(row), []).append(row)
    return "\n\n".join(_figures(name, measured) for name, measured in metrics.items())


def _figures(name: str, rows: list[dict]) -> str:
    """The figures of one metric: the protocol that they share, what was measured without a sampler, and the grids."""
    sampled = [row for row in rows if row.get("num_inference_steps") is not None]
    first, *others = sampled or rows
    keys = [key for key in dict.fromkeys([*PROTOCOL, *(key for row in rows for key in row)]) if key not in NO_PROTOCOL]
    shared = {key: first.get(key) for key in keys if all(row.get(key) == first.get(key) for row in others)}
    values, grids = [], {}
    for row in rows:
        apart = _said({key: row.get(key) for key in keys if row.get(key) != shared.get(key)})
        if row in sampled:
            grids.setdefault(apart, []).append(row)
        else:
            values.append(f"{apart}: {shown(row['value'])}".lstrip(": "))
    tables = [f"{kind}:\n\n{grid(rows)}" for kind, rows in grids.items()]
    parts = [f"**{name}**: {_said(shared)}", "; ".join(values), *tables]
    return "\n\n".join(part.strip(": \n") for part in parts if part)


def _said(protocol: dict[str, Any]) -> str:
    given = {key: _in_words(value) for key, value in protocol.items() if value is not None and value != {}}
    texts = [PROTOCOL.get(key, f"{key} {{}}").format(value) for key, value in given.items()]
    return HASH.sub(lambda found: found[0][:12], redact(", ".join(texts)))


def _in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting}" for key, setting in value.items())
    return STOCK if value == "stock" else value


def _network(folder: Path, unet: dict) -> str:
    files = main_weights(folder / "unet")
    counted, size = count_parameters(files), sum(file.stat().st_size for file in files)
    kind = unet.get("_class_name", "UNet2DModel")
    settings = _settings({key: unet[key] for key in NETWORK if unet.get(key) is not None})
    return f"`{kind}`, {counted:,} parameters, {size / 1e6:,.1f} MB as safetensors.\n\n{settings}"


def _training(config: dict, choice: dict) -> str:
    machine, count = config.get("machine"), config.get("num_processes") or 1
    where = f"On {machine}{f', {count} processes' if count > 1 else ''}.\n\n" if machine else ""
    hidden = {"started_from"} | ({"network"} if config.get("network") == config.get("recipe") else set())
    settings = {key: value for key, value in config.items() if value is not False and not HIDDEN.search(key)}
    shown = _settings({key: value for key, value in settings.items() if key not in hidden})
    return where + _before(config) + _average(config, choice) + shown


def _average(config: dict, choice: dict) -> str:
    """Which of a run's averages the weights are, where there were several."""
    if choice:
        among, off = len(choice["distances"]), choice["profile_errors"][choice["chosen"]]
        combined = f" It was not kept, but combined from others: its profile is off by {off:.2%}." if off > 0 else ""
        return (
            f"The weights are the average `{choice['chosen']}` after step {choice['step']:,}, which "
            f"`examples/choose_ema.py` chose among {among} by the distances of their samples.{combined}\n\n"
        )
    several = "," in str(config.get("ema_decay"))
    return "The weights are the first of the averages that `ema_decay` names.\n\n" if several else ""


def _before(config: dict) -> str:
    """What the model that the run started from had been trained on, run by run."""
    said, earlier = "", config.get("started_from")
    while earlier:
        images = f"{earlier['batch_size']:,} images of {redact(str(earlier['dataset_name']))}"
        loss = [f", by `{key}` {earlier[key]}" for key in ("snr_gamma", "loss_weighting") if key in earlier]
        said += f"Before this run it was trained for {earlier['final_step']:,} steps of {images}{''.join(loss)}.\n\n"
        earlier = earlier.get("started_from")
    return said


def _limits(unet: dict, names: list[str], rows: list[dict]) -> str:
    asked = "prompt, only a class" if names else "prompt and no class"
    limits = [f"It takes no {asked}: it draws from what it was trained on, with that data's biases."]
    if size := _size(unet):
        limits.append(f"It was trained for images of {size}; other sizes are outside what it has seen.")
    distances = [row for row in rows if row["metric"] in DISTANCES]
    if few := sorted({row["num_images"] for row in distances if row.get("num_images", 50_000) < 50_000}):
        counts = ", ".join(f"{count:,}" for count in few)
        limits.append(f"Distances over {counts} images are not comparable with published ones over 50,000.")
    others = {redact(row["feature_extractor"]) for row in distances if _kind(row) in GENERAL.values()}
    if others := sorted(others):
        limits.append(f"Distances over the features of {', '.join(others)} are not FID, nor comparable with it.")
    return "\n".join(f"- {limit}" for limit in limits)


def _reproduce(config: dict) -> str:
    lines = [f"```bash\n{redact_command(config['command'])}\n```"] if config.get("command") else []
    if config.get("git_commit"):
        lines.append(f"At commit `{config['git_commit']}` of ddim_hf.")
    if config.get("versions"):
        packages = ", ".join(f"{package} {version}" for package, version in config["versions"].items())
        lines.append(f"With {packages}.")
    return "\n\n".join(lines)


def _settings(settings: dict[str, Any]) -> str:
    """A table of the settings that had an effect."""
    idle = {name for switch, value, names in IDLE if settings.get(switch) == value for name in names}
    rows = [[key, _cell(value)] for key, value in settings.items() if value is not None and key not in idle]
    return table(["setting", "value"], rows).rstrip() if rows else ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return _escape(redact(str(value)))


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
