"""The parts of benchmark.py that need processes of their own: start-up, growth, several processes, training loops.

python examples/benchmarks/benchmark_processes.py PART prints rows as JSON; benchmark.py calls it.
"""

import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm.auto import tqdm

ROUNDS = 3
HERE = Path(__file__).parent
IMPORTS = "import torch, diffusers; from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel"
BATCH_SIZE, IMAGES = 128 if torch.cuda.is_available() else 64, 512
TRAINING_ROUNDS, PREPARING, STEPS = 2, 2, 4  # of a training: processes, and in each the steps not timed and timed
SCRIPT = "examples/unconditional_image_generation/train_unconditional.py"  # in a checkout of diffusers


def seconds_of(code: str, **environment: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **environment}, stdout=sys.stderr)
    return time.perf_counter() - began


def measure_startup() -> list[dict]:
    """Importing, in turn, and the time from process start to the first image."""
    first_image = (
        "from ddim_hf import *; pipe = DDIMCustomPipeline(build_unet('digits'), DDIMSchedulerCustom()); "
        "pipe(num_inference_steps=50)"
    )
    codes = {"diffusers": IMPORTS, "ddim_hf": f"{IMPORTS}; import ddim_hf", "first image": first_image}
    seconds = {name: [] for name in codes}
    for _ in range(ROUNDS + 1):
        for name, code in codes.items():
            seconds[name].append(seconds_of(code))
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return [
        {
            "what": "start-up",
            "import of diffusers' parts, s": median["diffusers"],
            "import of ddim_hf beyond that, s": median["ddim_hf"] - median["diffusers"],
            "process start to first image (digits, 50 steps), s": median["first image"],
        }
    ]


def sample_once(network: str, count: int, steps: int, size: int):
    """Run by growth in a process of its own: print seconds and peak memory of one call."""
    from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet

    pipe = DDIMCustomPipeline(build_unet(network, sample_size=size).eval(), DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    pipe(min(count, 64), num_inference_steps=2, max_batch_size=64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    pipe(count, num_inference_steps=steps, max_batch_size=64, seeds=range(count))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps({"seconds": seconds, "peak MiB": peak / 1024, "beyond a batch of 64, MiB": (peak - before) / 1024})
    )


def measure_growth() -> list[dict]:
    """Time and peak memory against images, steps and resolution (max_batch_size 64)."""
    cases = [("digits", count, 10, 8) for count in (1, 64, 1024, 8192)]
    cases += [("digits", 64, steps, 8) for steps in (20, 50, 100)]
    cases += [("cifar10-64", 4, 10, size) for size in (16, 32, 64)]
    rows = []
    for network, count, steps, size in cases:
        call = [sys.executable, __file__, "sample_once", network, str(count), str(steps), str(size)]
        figures = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        rows.append({"what": f"growth: {network}, {count} images, {steps} steps, {size} pixels", **figures})
    return rows


def measure_processes() -> list[dict]:
    """examples/sample.py on one and two processes with one thread each, less what a run of one image takes."""
    from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        DDIMCustomPipeline(build_unet("digits"), DDIMSchedulerCustom()).save_pretrained(f"{folder}/model")
        net = {}
        for processes in (1, 2):
            seconds = {}
            for count in (2, 2048):
                launch = [
                    sys.executable,
                    "-m",
                    "accelerate.commands.launch",
                    "--multi_gpu" if processes > 1 else "--cpu",
                ]
                launch += ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
                launch += [
                    "--dynamo_backend",
                    "no",
                    "--main_process_port",
                    "0",
                    HERE.parent / "sample.py",
                    f"{folder}/model",
                ]
                target = f"{folder}/{processes}-{count}"
                options = ["--num_images", str(count), "--num_inference_steps", "20", "--max_batch_size", "64"]
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
                began = time.perf_counter()
                subprocess.run(
                    [*launch, *options, "--output_dir", target, "--format", "npy"],
                    check=True,
                    env=environment,
                    stdout=sys.stderr,
                )
                seconds[count] = time.perf_counter() - began
            net[processes] = seconds[2048] - seconds[2]
        rows.append(
            {
                "what": "sample.py, digits, 2,046 images, 20 steps, one thread each",
                "1 process, s": net[1],
                "2 processes, s": net[2],
                "ratio": net[1] / net[2],
            }
        )
    return rows


def write_images(folder: Path):
    """512 colour images of 32 pixels as PNGs in folder/images, from the built-in digits."""
    from PIL import Image

    from ddim_hf.data import load_images

    images = load_images("digits", resolution=32, channels=3)
    (folder / "images").mkdir()
    for number in range(IMAGES):
        pixels = images[[number]][0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{number:04d}.png")


def stock_stepper(folder: str, network: str, precision: str, batch_size: int = BATCH_SIZE) -> Callable[[], None]:
    """A step with the choices of diffusers' train_unconditional.py: PNGs decoded and transformed in the data loader,
    default AdamW, EMAModel, and the loss read in every step."""
    from accelerate import Accelerator
    from datasets import load_dataset
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from torchvision import transforms

    from ddim_hf import build_unet

    accelerator = Accelerator(mixed_precision=precision)
    model, scheduler = build_unet(network), DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.RandomHorizontalFlip()]
    change = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    dataset = load_dataset("imagefolder", data_dir=f"{folder}/images", split="train")
    dataset.set_transform(lambda rows: {"input": [change(image.convert("RGB")) for image in rows["image"]]})
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
    model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())

    def step():
        clean = next(batches)["input"]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device)
        with accelerator.accumulate(model):
            prediction = model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
            loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        ema.step(model.parameters())
        loss.item()

    return step


def bare_stepper(network: str, precision: str, batch_size: int) -> Callable[[], None]:
    """Forward, backward and step on one batch and nothing else, laid out as our training lays it out."""
    from ddim_hf import build_unet

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = build_unet(network).to(device, memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(batch_size, 3, 32, 32, device=device).to(memory_format=layout)
    timesteps = torch.randint(0, 1000, (batch_size,), device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            prediction = model(x, timesteps).sample
        prediction.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_stepper(
    folder: str, network: str, precision: str, compile: bool, batch_size: int = BATCH_SIZE, **extra: object
) -> Callable[[], None]:
    """The step of examples/train.py, with `extra` settings of it."""
    from ddim_hf.training import TrainingConfig, TrainingRun

    settings = {"recipe": "cifar10-64", "network": network}
    settings |= {"dataset_name": f"{folder}/images", "output_dir": f"{folder}/run"}
    settings |= {"batch_size": batch_size, "mixed_precision": precision, "compile": compile}
    settings |= {"samplers": "none", "validation_split": "none", "logger": "none"}
    return TrainingRun(TrainingConfig(**settings, **extra)).train_step


def compiled_as_it_is(step: Callable[[], None]) -> Callable[[], None]:
    """The step of a run, compiled without what `--compile` changes on a CPU: the layout and the group norms."""
    step.__self__.unet.compile(dynamic=False)
    return step


def seconds_of_the_script(folder: str, network: str, precision: str, batch_size: int) -> list[float]:
    """Seconds of each step of diffusers' own train_unconditional.py, in the checkout that DIFFUSERS_SOURCE names, run
    in this process: of the times between its log lines, one a step, those after the steps that prepare much."""
    import runpy

    from accelerate import Accelerator
    from benchmark import clock

    from ddim_hf import build_unet

    out = Path(tempfile.mkdtemp(dir=folder))
    images = out / "images"
    images.mkdir()
    files = itertools.cycle(sorted(Path(folder, "images").glob("*.png")))
    for number, file in enumerate(itertools.islice(files, (PREPARING + STEPS) * batch_size)):
        (images / f"{number:05d}.png").write_bytes(file.read_bytes())
    build_unet(network).save_config(out / "network")
    words = "--resolution 32 --random_flip --use_ema --num_epochs 1 --eval_batch_size 1 --ddpm_num_inference_steps 1"
    words = f"{words} --train_batch_size {batch_size} --mixed_precision {precision}".split()
    words += ["--train_data_dir", images, "--model_config_name_or_path", out / "network", "--output_dir", out / "run"]
    words += ["--cache_dir", out / "cache"]
    times, log = [], Accelerator.log

    def timed(self, values, **more):
        times.append(clock())
        return log(self, values, **more)

    Accelerator.log = timed
    script = Path(os.environ["DIFFUSERS_SOURCE"].split(os.pathsep)[0], SCRIPT)
    sys.argv = [str(script), *map(str, words)]
    with contextlib.redirect_stdout(sys.stderr):
        runpy.run_path(str(script), run_name="__main__")
    return [after - before for before, after in itertools.pairwise(times[PREPARING - 1 :])]


def seconds_of_steps(contender: str, folder: str, network: str, precision: str, batch_size: int) -> list[float]:
    """Seconds of a step, several times, of one of the loops that `measure_training` compares."""
    from benchmark import clock, synchronize

    settings = folder, network, precision
    if contender == "script":
        return seconds_of_the_script(*settings, batch_size)
    if contender == "stock":
        step = stock_stepper(*settings, batch_size)
    elif contender == "bare":
        step = bare_stepper(network, precision, batch_size)
    else:
        step = our_stepper(*settings, contender == "compiled", batch_size)
    if contender == "compiled as it is":
        step = compiled_as_it_is(step)
    inner, seconds = 20 if torch.cuda.is_available() else 1, []
    for _ in range(PREPARING + STEPS):
        synchronize()
        began = clock()
        for _ in range(inner):
            step()
        synchronize()
        seconds.append((clock() - began) / inner)
    return seconds[PREPARING:]


def training_rates(folder: str, network: str, precision: str, batch_size: str) -> dict[str, float]:
    """Images a second of each loop, each in processes of its own, in turn: what one does to its process, as to its
    allocator, is not the others'."""
    contenders = ["stock", "ours", "bare", "compiled"]
    contenders += [] if torch.cuda.is_available() else ["compiled as it is"]
    contenders += ["script"] if os.environ.get("DIFFUSERS_SOURCE") else []
    seconds = {name: [] for name in contenders}
    for name in tqdm(contenders * TRAINING_ROUNDS, desc=f"training, {network}, {precision}"):
        call = [sys.executable, __file__, "seconds_of_steps", name, folder, network, precision, batch_size]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the loop {name!r} failed:\n{done.stderr[-2000:]}")
        seconds[name] += json.loads(done.stdout.splitlines()[-1])
    return {name: int(batch_size) / statistics.median(values) for name, values in seconds.items()}


def measure_training(networks: str = "", batch_size: str = str(BATCH_SIZE)) -> list[dict]:
    """Our loop beside the stock loop and the bare one, for networks given by commas."""
    rows = []
    on_gpu = torch.cuda.is_available()
    native_bf16 = on_gpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # emulated it takes an hour
    for network in (networks or ("cifar10-64,cifar10-128" if on_gpu else "cifar10-64")).split(","):
        for precision in ("no", "bf16") if native_bf16 else ("no",):
            with tempfile.TemporaryDirectory() as folder:
                write_images(Path(folder))
                rate = training_rates(folder, network, precision, batch_size)
            row = {"what": f"training, {network}, batch {batch_size}, mixed_precision {precision}"}
            row |= {"ours images/s": rate["ours"], "ours --compile": rate["compiled"], "stock loop": rate["stock"]}
            row |= {"bare loop": rate["bare"], "ours to stock": rate["ours"] / rate["stock"]}
            row |= {"ours to bare": rate["ours"] / rate["bare"]}
            row |= {"compiled to stock": rate["compiled"] / rate["stock"]}
            if "compiled as it is" in rate:
                row["compiled as it is to stock"] = rate["compiled as it is"] / rate["stock"]
            if "script" in rate:
                row |= {"train_unconditional.py": rate["script"], "ours to it": rate["ours"] / rate["script"]}
                row["compiled to it"] = rate["compiled"] / rate["script"]
            rows.append(row)
            print(json.dumps(rows[-1]), file=sys.stderr)  # the next one takes minutes
    return rows


PARTS = {
    "startup": measure_startup,
    "growth": measure_growth,
    "processes": measure_processes,
    "training": measure_training,
}

if __name__ == "__main__":
    part, arguments = sys.argv[1] if sys.argv[1:] else "", sys.argv[2:]
    if part in PARTS:
        print(json.dumps(PARTS[part](*arguments)))
    elif part == "sample_once":
        sample_once(arguments[0], *map(int, arguments[1:]))
    elif part == "seconds_of_steps":
        print(json.dumps(seconds_of_steps(*arguments[:4], int(arguments[4]))))
    else:
        print(f"{__doc__}\nPART is one of: {', '.join(PARTS)}")
        sys.exit(0 if part in ("-h", "--help") else 2)
