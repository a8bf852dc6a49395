"""DDIMCustomPipeline: everything the DDIM paper does with a trained network, behind diffusers' pipeline interface."""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .fast_sampling import FastNetwork
from .images import IMAGE_TYPES, images_to_states, states_to_images
from .inversion import encode
from .pipeline_output import DDIMInversionOutput, DDIMPipelineOutput, DDIMReconstructionOutput
from .scheduling_ddim_custom import DDIMSchedulerCustom


class DDIMCustomPipeline(DiffusionPipeline):
    """Sample, encode, reconstruct and interpolate images with DDIM (Song, Meng, Ermon 2020).

    Args:
        unet: the network that predicts the noise.
        scheduler: any diffusers scheduler; its config is recast to `DDIMSchedulerCustom`. To sample with another
            scheduler, assign it to `pipe.scheduler` afterwards.
    """

    model_cpu_offload_seq = "unet"
    _fast: FastNetwork | None = None

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin):
        super().__init__()
        if not isinstance(scheduler, DDIMSchedulerCustom):
            scheduler = DDIMSchedulerCustom.from_config(scheduler.config)
        self.register_modules(unet=unet, scheduler=scheduler)

    # Sampling

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        *,
        seeds: Sequence[int] | None = None,
        timesteps: Sequence[int] | None = None,
        latents: torch.Tensor | None = None,
        max_batch_size: int | None = None,
        clip_sample: bool | None = None,
        callback_on_step_end: Callable[..., dict | None] | None = None,
        return_trajectory: bool = False,
    ) -> DDIMPipelineOutput | tuple:
        """Sample images from noise (paper, eq. 12). The arguments up to return_dict are those of `DDIMPipeline`.

        Args:
            batch_size: number of images.
            generator: draws x_T and the noise of each step; a list has one generator per image.
            eta: 0 is DDIM (deterministic), 1 is DDPM; in [0, 1].
            num_inference_steps: S, from 1 to T.
            use_clipped_model_output: derive eps anew from the clipped x_0 in each step.
            output_type: "pil", "np", "pt" or "latent" (see `DDIMPipelineOutput`).
            return_dict: return a tuple if False.
            seeds: one int per image; image k depends on seeds[k] alone. Not together with `generator`.
            timesteps: tau itself, strictly decreasing ints in [0, T), instead of num_inference_steps.
            latents: x_T, [batch_size, C, H, W], instead of drawing it; of unit scale, for any scheduler.
            max_batch_size: pass at most so many images through the network at once, so that memory stays bounded.
            clip_sample: override the scheduler's clipping of x_0 in this call (False turns thresholding off too);
                decode the latents of `invert` with False.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ..., "pred_original_sample": ...})
                after each step; a dict that it returns may replace "latents".
            return_trajectory: return all states and predictions of x_0 too.

        Raises:
            ValueError: an argument outside what is listed.
        """
        self.check_sampling(
            batch_size,
            generator=generator,
            eta=eta,
            output_type=output_type,
            seeds=seeds,
            latents=latents,
            max_batch_size=max_batch_size,
        )
        scheduler = self._prepare_scheduler(num_inference_steps, timesteps, clip_sample)
        if seeds is not None:
            generator = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        arguments = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        accepted = inspect.signature(scheduler.step).parameters
        arguments = {name: value for name, value in arguments.items() if name in accepted}
        chunk_size = max_batch_size or batch_size
        steps = len(scheduler.timesteps)

        images, histories = [], []
        with self.progress_bar(total=steps * math.ceil(batch_size / chunk_size)) as bar:
            for start in range(0, batch_size, chunk_size):
                if start > 0:  # a swapped multistep scheduler remembers the images before
                    scheduler = self._prepare_scheduler(num_inference_steps, timesteps, clip_sample)
                stop = min(start + chunk_size, batch_size)
                own = generator[start:stop] if isinstance(generator, list) else generator
                if "generator" in accepted:
                    arguments["generator"] = own
                x = self._first_state(stop - start, own, None if latents is None else latents[start:stop], scheduler)
                x, history = self._denoise(x, scheduler, arguments, callback_on_step_end, return_trajectory, bar)
                images.append(states_to_images(x, output_type))
                histories.append(history)
        images = _join(images)
        self.maybe_free_model_hooks()

        trajectory = predictions = None
        if return_trajectory:
            trajectory, predictions = (
                [torch.cat(parts) for parts in zip(*which, strict=True)] for which in zip(*histories, strict=True)
            )
        output = DDIMPipelineOutput(images=images, trajectory=trajectory, pred_original_samples=predictions)
        return output if return_dict else output.to_tuple()

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the states that the network takes."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def check_sampling(
        self,
        batch_size: int = 1,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        output_type: str | None = "pil",
        seeds: Sequence[int] | None = None,
        latents: torch.Tensor | None = None,
        max_batch_size: int | None = None,
    ):
        """Raise ValueError, in one line, where a call with these arguments would."""
        _check_counts(batch_size=batch_size, max_batch_size=max_batch_size)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; allowed: 0 (DDIM) to 1 (DDPM)")
        if output_type not in IMAGE_TYPES:
            raise ValueError(f"output_type is {output_type!r}; allowed: {', '.join(map(repr, IMAGE_TYPES))}")
        if seeds is not None and generator is not None:
            raise ValueError("seeds and generator are both given; allowed: one of them")
        if seeds is not None and np.shape(seeds) != (batch_size,):
            raise ValueError(f"seeds has shape {np.shape(seeds)}; allowed: one int per image, ({batch_size},)")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"generator has {len(generator)} entries; allowed: one, or batch_size ({batch_size})")
        shape = (batch_size, *self.state_shape)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents has shape {tuple(latents.shape)}; allowed: {shape}")

    def _prepare_scheduler(self, num_inference_steps, timesteps, clip_sample=None) -> SchedulerMixin:
        """The scheduler with its timesteps set: the pipeline's own, or a copy with the clipping that is asked for."""
        scheduler = self.scheduler
        if clip_sample is not None:
            scheduler = type(scheduler).from_config(scheduler.config, clip_sample=clip_sample, thresholding=False)
        if timesteps is None:
            scheduler.set_timesteps(num_inference_steps)
        elif "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(timesteps=timesteps)
        else:
            raise ValueError(f"{type(scheduler).__name__} takes no timesteps; allowed: num_inference_steps")
        return scheduler

    def _first_state(self, count, generator, latents, scheduler) -> torch.Tensor:
        device = self._execution_device
        shape, dtype = (count, *self.state_shape), self.unet.dtype
        x = randn_tensor(shape, generator, device, dtype) if latents is None else latents.to(device, dtype)
        return x if scheduler.init_noise_sigma == 1 else x * scheduler.init_noise_sigma

    def predict(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What the network, fast sampling's where that is on, predicts for states x [B, C, H, W]; of x's shape."""
        if self._fast is not None:
            if self._fast.unet is not self.unet:  # another network was put in its place
                self.enable_fast_sampling(*self._fast.asked_for)
            return self._fast(x, timestep)
        return self.unet(x, timestep).sample

    def _denoise(self, x, scheduler, arguments, callback, record, bar) -> tuple[torch.Tensor, tuple[list, list]]:
        """Run the whole schedule from x_T; also the states and the predictions of x_0, if they are to be recorded."""
        states, predictions = [x] if record else [], []
        on_device = scheduler.timesteps.to(x.device)
        # Our own step takes Python ints, so that it never waits for the device; others look their tensor up.
        own = isinstance(scheduler, DDIMSchedulerCustom)
        for i, t in enumerate(scheduler.timesteps.tolist() if own else scheduler.timesteps):
            output = self.predict(scheduler.scale_model_input(x, t), on_device[i])
            stepped = scheduler.step(output, t, x, **arguments)
            x, x0 = stepped.prev_sample, getattr(stepped, "pred_original_sample", None)
            if callback is not None:
                replaced = callback(self, i, t, {"latents": x, "pred_original_sample": x0}) or {}
                x = replaced.get("latents", x)
            if record:
                states.append(x)
                predictions.append(x0 if x0 is not None else x)
            bar.update()
        return x, (states, predictions)

    # Encoding

    @torch.no_grad()
    def invert(
        self,
        images: Any,
        num_inference_steps: int = 50,
        exact: bool = False,
        *,
        timesteps: Sequence[int] | None = None,
        input_type: str = "image",
        tolerance: float = 1e-5,
        max_iterations: int = 100,
        max_batch_size: int | None = None,
        return_trajectory: bool = False,
    ) -> DDIMInversionOutput:
        """Encode images into latents x_T by running the ODE backwards (paper, section 4.3 and eq. 13).

        Args:
            images: PIL image or list of them, array [N, H, W, C] or [H, W, C], tensor [N, C, H, W] or [C, H, W]; uint8
                in 0..255 or floats in [0, 1].
            num_inference_steps: S, from 1 to T.
            exact: solve each step's implicit equation by fixed-point iteration, so that sampling the latents with the
                same schedule (eta 0, clip_sample=False) returns the images to float precision.
            timesteps: tau itself instead of num_inference_steps.
            input_type: "image", or "latent" for states x_0 as the network sees them (tensor, any range).
            tolerance: a step has converged when no value changes by more (states have unit scale).
            max_iterations: iterations of a step after which it warns and keeps its best iterate.
            max_batch_size: pass at most so many images through the network at once.
            return_trajectory: return all states too.

        Raises:
            ValueError: images of the wrong size or range, an argument outside what is listed, or a scheduler whose
                steps have no inverse here (another class, or x0_formula="as_printed").
        """
        self._check_encoding(tolerance, max_iterations, max_batch_size)
        scheduler = self._prepare_scheduler(num_inference_steps, timesteps)
        x0 = images_to_states(images, self.state_shape, input_type)
        chunks = x0.split(max_batch_size or len(x0))
        trajectories, residuals = [], []
        with self.progress_bar(total=len(scheduler.timesteps) * len(chunks)) as bar:
            for x in chunks:
                x = x.to(self._execution_device, self.unet.dtype)
                states, residual = encode(self.predict, scheduler, x, exact, tolerance, max_iterations, bar.update)
                trajectories.append(states if return_trajectory else states[-1:])
                residuals.append(residual)
        self.maybe_free_model_hooks()
        trajectory = [torch.cat(parts) for parts in zip(*trajectories, strict=True)]
        return DDIMInversionOutput(
            latents=trajectory[-1],
            residual=max(residuals) if exact else None,
            trajectory=trajectory if return_trajectory else None,
        )

    def _check_encoding(self, tolerance, max_iterations, max_batch_size):
        if not isinstance(self.scheduler, DDIMSchedulerCustom):
            raise ValueError(f"encoding with {type(self.scheduler).__name__}; allowed: DDIMSchedulerCustom")
        if self.scheduler.config.x0_formula != "exact":
            raise ValueError("encoding with x0_formula 'as_printed'; allowed: 'exact'")
        if not tolerance > 0:
            raise ValueError(f"tolerance is {tolerance}; allowed: above 0")
        _check_counts(max_iterations=max_iterations, max_batch_size=max_batch_size)

    def reconstruct(
        self,
        images: Any,
        num_inference_steps: int = 50,
        exact: bool = False,
        *,
        output_type: str | None = "pil",
        timesteps: Sequence[int] | None = None,
        input_type: str = "image",
        tolerance: float = 1e-5,
        max_iterations: int = 100,
        max_batch_size: int | None = None,
    ) -> DDIMReconstructionOutput:
        """Encode images and sample them back without clipping (paper, section 5.4).

        The arguments are those of `invert`; `output_type` is that of sampling.
        """
        x0 = images_to_states(images, self.state_shape, input_type)
        schedule = dict(num_inference_steps=num_inference_steps, timesteps=timesteps, max_batch_size=max_batch_size)
        solver = dict(tolerance=tolerance, max_iterations=max_iterations)
        encoded = self.invert(x0, exact=exact, input_type="latent", **schedule, **solver)
        decoded = self(len(x0), latents=encoded.latents, clip_sample=False, output_type="latent", **schedule).images
        # States span [-1, 1], twice the range of pixels in [0, 1].
        mse = ((decoded.float().cpu() - x0.float().cpu()) / 2).square().flatten(1).mean(1)
        return DDIMReconstructionOutput(
            images=states_to_images(decoded, output_type),
            mse=mse,
            latents=encoded.latents,
            residual=encoded.residual,
        )

    def interpolate(
        self,
        *corners: Any,
        num_images: int = 8,
        num_inference_steps: int = 50,
        exact: bool = True,
        output_type: str | None = "pil",
        timesteps: Sequence[int] | None = None,
        max_batch_size: int | None = None,
        clip_sample: bool | None = None,
    ) -> DDIMPipelineOutput:
        """Sample along the great circle between latents (paper, section 5.3 and eq. 67); the ends give the end images.

        Args:
            corners: two ends, or the four corners of a grid (top left, top right, bottom left, bottom right). All are
                ints (seeds), or all tensors (latents x_T, [C, H, W] or [1, C, H, W]), or all images (PIL, or arrays
                [H, W, C] or [1, H, W, C]), which are inverted.
            num_images: length of the strip, or of each side of the grid (row by row); at least 2.
            num_inference_steps: S, from 1 to T.
            exact: invert images exactly.
            output_type: "pil", "np", "pt" or "latent".
            timesteps: tau itself instead of num_inference_steps.
            max_batch_size: pass at most so many images through the network at once.
            clip_sample: override the scheduler's clipping of x_0; None does not clip between images.

        Raises:
            ValueError: another number of corners, mixed kinds, or num_images below 2.
        """
        if len(corners) not in (2, 4):
            raise ValueError(f"{len(corners)} corners; allowed: 2 (a strip) or 4 (a grid)")
        if num_images < 2:
            raise ValueError(f"num_images is {num_images}; allowed: 2 or more")
        schedule = dict(num_inference_steps=num_inference_steps, timesteps=timesteps, max_batch_size=max_batch_size)
        if all(isinstance(corner, Image.Image | np.ndarray) for corner in corners):
            states = torch.cat([images_to_states(corner, self.state_shape)[:1] for corner in corners])
            latents = self.invert(states, exact=exact, input_type="latent", **schedule).latents
            clip_sample = bool(clip_sample)
        else:
            latents = self._corner_latents(corners)

        weights = torch.linspace(0, 1, num_images).tolist()
        if len(corners) == 2:
            path = [slerp(*latents, weight) for weight in weights]
        else:
            edges = [(slerp(*latents[:2], weight), slerp(*latents[2:], weight)) for weight in weights]
            path = [slerp(left, right, weight) for weight in weights for left, right in edges]
        return self(len(path), latents=torch.stack(path), clip_sample=clip_sample, output_type=output_type, **schedule)

    def _corner_latents(self, corners) -> torch.Tensor:
        """[K, C, H, W] latents of corners that are latents or seeds."""
        shape = self.state_shape
        if all(isinstance(corner, torch.Tensor) for corner in corners):
            shapes = [tuple(corner.shape) for corner in corners]
            if any(given not in (shape, (1, *shape)) for given in shapes):
                raise ValueError(f"corners have shapes {shapes}; allowed: {shape}")
            return torch.stack([corner.reshape(shape) for corner in corners])
        if all(isinstance(corner, int | np.integer) for corner in corners):
            generators = [torch.Generator().manual_seed(int(seed)) for seed in corners]
            return self._first_state(len(corners), generators, None, self.scheduler)
        kinds = ", ".join(type(corner).__name__ for corner in corners)
        raise ValueError(f"corners are {kinds}; allowed: all ints, all tensors, or all PIL images or arrays")

    # Speed

    def enable_fast_sampling(self, dtype: torch.dtype | None = None, compile: bool = True) -> str:
        """Run the network channels-last, in bf16 where that is faster, and compiled; the states stay float32.

        The network is changed in place until `disable_fast_sampling`. Exact encoding converges slowly in bf16: encode
        before, or with float32.

        Args:
            dtype: torch.bfloat16 or torch.float32; None takes bf16 where the device computes it faster
                (a GPU from its capability, a CPU from a trial of some milliseconds).
            compile: use `torch.compile` (CUDA graphs on a GPU); without a compiler it warns and goes on without.

        Returns:
            What was chosen and why, in one line.
        """
        self.disable_fast_sampling()
        self._fast = FastNetwork(self.unet, self._execution_device, dtype, compile)
        return self._fast.description

    def disable_fast_sampling(self):
        """Undo `enable_fast_sampling`."""
        if self._fast is not None:
            self._fast.undo()
        self._fast = None

    # On disk and on the Hub

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "DDIMCustomPipeline":
        """Load a pipeline from a folder or the Hub: ours, or one saved by stock DDPMPipeline or DDIMPipeline.

        Takes the keywords of `DiffusionPipeline.from_pretrained`. Pickled weights are refused unless
        `use_safetensors=False` asks for them by name.
        """
        from .hub import load_model

        return load_model(cls, super().from_pretrained, pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True, **kwargs: Any):
        """Write a folder that this class and every stock diffusers install can load.

        Takes the keywords of `DiffusionPipeline.save_pretrained`. Raises ValueError for safe_serialization=False.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization is False; allowed: True (weights are never pickled)")
        to_hub = ("push_to_hub", "repo_id", "commit_message", "private", "token", "create_pr")
        push = {key: kwargs.pop(key) for key in to_hub if key in kwargs}
        super().save_pretrained(save_directory, **kwargs)
        _write_stock_names(Path(save_directory))
        if push.pop("push_to_hub", False):
            from .hub import push_to_hub

            push_to_hub(save_directory, push.pop("repo_id", Path(save_directory).name), **push)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:
        """Push as one commit, with a model card, and return the address; the arguments are those of diffusers."""
        from .hub import push_pipeline

        return push_pipeline(self, repo_id, *args, **kwargs)


def _write_stock_names(folder: Path):
    """Name diffusers' own classes in a saved folder; our scheduler keys stay where they differ from their defaults."""
    index_file, scheduler_file = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    index = json.loads(index_file.read_text())
    index.update(_class_name="DDIMPipeline", unet=["diffusers", "UNet2DModel"])
    if index["scheduler"][1] == "DDIMSchedulerCustom":  # another one, swapped in, has its stock name already
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        defaults = inspect.signature(DDIMSchedulerCustom.__init__).parameters
        config = {
            key: value
            for key, value in json.loads(scheduler_file.read_text()).items()
            if key not in ("skip_type", "x0_formula", "variance") or value != defaults[key].default
        }
        config["_class_name"] = "DDIMScheduler"
        scheduler_file.write_text(json.dumps(config, indent=2) + "\n")
    index_file.write_text(json.dumps(index, indent=2) + "\n")


def slerp(start: torch.Tensor, end: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the point at `weight` (0 start, 1 end) on the great circle between two tensors of one shape (eq. 67)."""
    cosine = torch.cosine_similarity(start.flatten().double().cpu(), end.flatten().double().cpu(), dim=0)
    angle = math.acos(max(-1.0, min(cosine.item(), 1.0)))
    if math.sin(angle) < 1e-6:  # same or opposite directions: no one great circle to follow
        return torch.lerp(start, end, weight)
    return math.sin((1 - weight) * angle) / math.sin(angle) * start + math.sin(weight * angle) / math.sin(angle) * end


def _check_counts(**counts):
    for name, value in counts.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not (whole and value >= 1) and not (value is None and name == "max_batch_size"):
            raise ValueError(f"{name} is {value!r}; allowed: whole numbers from 1")


def _join(parts: list) -> Any:
    """The batches of one call as a whole."""
    if isinstance(parts[0], list):
        return [image for part in parts for image in part]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(parts)
