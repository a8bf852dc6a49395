"""DDIMCustomPipeline: everything the DDIM paper does with a trained network, behind diffusers' pipeline interface."""

import copy
import inspect
import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import is_accelerate_available
from diffusers.utils.torch_utils import randn_tensor
from filelock import FileLock
from PIL import Image

from .calibration import (
    MOST_IN_A_BLOCK,
    add_schedules_of,
    describe_sampler,
    find_schedule,
    fit_schedules,
    keep_schedules,
)
from .fast_sampling import FastNetwork
from .files import read_json, write_text
from .guidance import (
    Condition,
    Network,
    check_guide,
    check_names,
    class_ids,
    count_images,
    guided,
    listed,
    make_condition,
    number_of_classes,
    shares_between,
)
from .images import check_output_type, images_to_states, states_to_images
from .inversion import encode
from .keywords import answer_unknown
from .pipeline_output import DDIMInversionOutput, DDIMPipelineOutput, DDIMReconstructionOutput
from .scheduling_ddim_custom import DDIMSchedulerCustom, check_timesteps
from .unet import weights_hash, weights_mark


class DDIMCustomPipeline(DiffusionPipeline):
    """Sample, encode, reconstruct and interpolate images with DDIM (Song, Meng, Ermon 2020).

    Args:
        unet: the network that predicts the noise.
        scheduler: any of diffusers' schedulers that has betas; `DDIMSchedulerCustom` takes its place, with the same
            betas and prediction type. To sample with another scheduler, assign it to `pipe.scheduler` afterwards.
        id2label: the names of a class-conditional network's classes 0 to K - 1, such as {0: "cat", 1: "dog"}; by
            default their numbers. The network has num_class_embeds = K + 1: index K is the null class. Keys can be
            strings of numbers, as JSON has them.

    Raises:
        ValueError: the scheduler's process has no betas (flow matching, EDM and the like), or id2label names other
            classes than the network has.
    """

    model_cpu_offload_seq = "unet"
    fast_network: FastNetwork | None = None  # of `enable_fast_sampling`
    commit: str | None = None  # of the Hub's repository that it was loaded from
    _hashed: tuple[Any, str] | None = None  # the network's weights_mark, and the weights_hash that belongs to it

    def __init__(
        self, unet: UNet2DModel, scheduler: SchedulerMixin, id2label: dict[int, str] | dict[str, str] | None = None
    ):
        super().__init__()
        if not isinstance(scheduler, DDIMSchedulerCustom):
            scheduler = DDIMSchedulerCustom.from_scheduler(scheduler)
        self.register_modules(unet=unet, scheduler=scheduler)
        if id2label:  # else it would stand as null in every model's index
            self.register_to_config(id2label=check_names(id2label, unet))

    # Classes

    @property
    def id2label(self) -> dict[int, str]:
        """The names of the network's classes by number, without the null class; empty for one without classes."""
        names = self.config.get("id2label") or {}
        return {number: names.get(number, str(number)) for number in range(number_of_classes(self.unet) or 0)}

    def class_ids(self, class_labels: Any, batch_size: int) -> torch.Tensor | None:
        """Return the classes of a batch's images, int64 [batch_size]; None for a network without classes.

        Args:
            class_labels: names or numbers, one for all images or a sequence with one for each; None, also as an entry,
                is the null class.

        Raises:
            ValueError: an unknown name or number, another length, or labels for a network without classes.
        """
        return class_ids(class_labels, batch_size, self.id2label)

    def labels_in_turn(self, class_labels: Any, numbers: Sequence[int] | None = None) -> list[int] | None:
        """Return the classes that many images take in turn; None for a network without classes.

        Args:
            class_labels: a name or number, several, or "all" for all classes but the null class, which is None.
            numbers: of the images, where k has the label k modulo their count; None returns the labels of one turn.

        Raises:
            ValueError: as `class_ids`.
        """
        if isinstance(class_labels, str) and class_labels == "all" and "all" not in self.id2label.values():
            class_labels = list(self.id2label)
        labels = listed(class_labels)
        if labels is not None and not labels:
            raise ValueError("class_labels has no entries; allowed: one or more")
        ids = self.class_ids(class_labels, 1 if labels is None else len(labels))
        if ids is None or numbers is None:
            return None if ids is None else ids.tolist()
        return ids[[k % len(ids) for k in numbers]].tolist()

    # Sampling

    @answer_unknown
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
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: "DDIMCustomPipeline | UNet2DModel | None" = None,
        max_batch_size: int | None = None,
        clip_sample: bool | None = None,
        calibrated: bool | dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict | None] | None = None,
        return_trajectory: bool = False,
    ) -> DDIMPipelineOutput | tuple:
        """Sample images from noise (paper, eq. 12). The arguments up to return_dict are those of `DDIMPipeline`.

        Args:
            batch_size: number of images; in place of 1 as many as class_labels has entries.
            generator: draws x_T and the noise of each step; a list has one generator per image.
            eta: 0 is DDIM (deterministic), 1 is DDPM; in [0, 1].
            num_inference_steps: S, from 1 to T.
            use_clipped_model_output: derive eps anew from the clipped x_0 in each step.
            output_type: "pil", "np", "pt" or "latent" (see `DDIMPipelineOutput`); as in stock, None, "numpy" and
                "np.array" are "np". "pil" raises for images that are NaN or infinite; others give them as they are.
            return_dict: return a tuple if False.
            seeds: one int per image; image k depends on seeds[k] alone. Not together with `generator`.
            timesteps: tau itself, strictly decreasing ints in [0, T), instead of num_inference_steps.
            latents: x_T, [batch_size, C, H, W], instead of drawing it; of unit scale, for any scheduler.
            class_labels: what each image is to show, for a network with classes: names of `id2label` or numbers, one
                for all images or one each. None, also as an entry, is the null class, which is any. Or a float tensor
                [batch_size, K + 1] of shares that sum to 1, by which the classes' predictions are mixed.
            guidance_scale: g of classifier-free guidance, eps_null + g (eps_class - eps_null), from 0: 1 is the
                class's own prediction, in one pass; above 1 images are more typical of it and less diverse.
            guidance_interval: the timesteps (t_low, t_high), both included, in which guidance is on (Kynkaanniemi et
                al. 2024, arXiv:2404.07724, who leave it out where the noise is highest and lowest).
            guide: a worse network for the same states, the prediction of which takes the null class's place
                (autoguidance: Karras et al. 2024, arXiv:2406.02507), for the same classes where it has some. It needs
                no labels.
            max_batch_size: pass at most so many images through the network at once, so that memory stays bounded;
                guidance passes each twice at once.
            clip_sample: override the scheduler's clipping of x_0 in this call (False turns thresholding off too);
                decode the latents of `invert` with False.
            calibrated: by default the schedule that `calibrate` has fitted is used, where there is one for
                num_inference_steps, these classes and this guidance, eta is 0, and neither timesteps, clip_sample nor
                use_clipped_model_output is given. Of several it is that of the fewest classes, so which classes are in
                a call counts. False takes plain steps; True raises where there is no schedule; what
                `calibrated_schedule` returned for more classes is taken for these too.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ..., "pred_original_sample": ...})
                after each step; a dict that it returns may replace "latents".
            return_trajectory: return all states, predictions of x_0 and timesteps too.

        A call samples on a scheduler of its own: `pipe.scheduler` stays as it is, and calls from within the callback
        or from other threads do not touch this one.

        Raises:
            ValueError: an argument outside what is listed or without meaning for an assigned scheduler, a network or
                scheduler that cannot sample here, images to be "pil" that are not finite, labels for a network without
                classes, guidance other than 1 with neither labels nor a guide, or a guide for other states, timesteps
                or classes.
        """
        guidance = {"class_labels": class_labels, "guidance_scale": guidance_scale}
        guidance |= {"guidance_interval": guidance_interval, "guide": guide}
        self.check_sampling(
            batch_size,
            generator=generator,
            eta=eta,
            use_clipped_model_output=use_clipped_model_output,
            output_type=output_type,
            seeds=seeds,
            latents=latents,
            max_batch_size=max_batch_size,
            **guidance,
        )
        batch_size = count_images(batch_size, class_labels)
        schedule = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "clip_sample": clip_sample}
        noise = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        fitted = self.calibrated_schedule(calibrated=calibrated, **schedule, **noise, **guidance)
        condition = self._condition(batch_size, **guidance)
        schedule |= fitted or {}
        scheduler = self._new_schedule(**schedule)
        timesteps_visited = scheduler.timesteps.tolist()
        condition.check_interval_meets(timesteps_visited)
        if seeds is not None:
            generator = [torch.Generator().manual_seed(operator.index(seed)) for seed in seeds]

        # Of each moment, the parts that the chunks of the batch bring.
        images, trajectory = [], [[] for _ in range(len(timesteps_visited) + 1)]
        predictions = [[] for _ in timesteps_visited]

        def on_step(i: int, t: int | torch.Tensor, x: torch.Tensor, x0: torch.Tensor | None) -> torch.Tensor:
            if callback_on_step_end is not None:
                replaced = callback_on_step_end(self, i, t, {"latents": x, "pred_original_sample": x0}) or {}
                x = replaced.get("latents", x)
            if return_trajectory:
                trajectory[i + 1].append(x)
                predictions[i].append(x if x0 is None else x0)
            bar.update()
            return x

        chunk_size = max_batch_size or batch_size
        with self.progress_bar(total=len(timesteps_visited) * math.ceil(batch_size / chunk_size)) as bar:
            for start in range(0, batch_size, chunk_size):
                chunk = slice(start, min(start + chunk_size, batch_size))
                draws = generator[chunk] if isinstance(generator, list) else generator
                if start > 0:  # an assigned multistep scheduler remembers the images before
                    scheduler = self._new_schedule(**schedule)
                x = self._noise(chunk.stop - start, draws) if latents is None else self._on_device(latents[chunk])
                if scheduler.init_noise_sigma != 1:
                    x = x * scheduler.init_noise_sigma
                if return_trajectory:
                    trajectory[0].append(x)
                step_arguments = _step_arguments(scheduler, draws, len(x), **noise)
                x = self._denoise(x, scheduler, condition.of(chunk), step_arguments, on_step)
                images.append(states_to_images(x, output_type, range(chunk.start, chunk.stop)))
        self.maybe_free_model_hooks()

        states = {}  # given at once, as the output's keys are those of what it is made with
        if return_trajectory:
            states["trajectory"] = [torch.cat(parts) for parts in trajectory]
            states["pred_original_samples"] = [torch.cat(parts) for parts in predictions]
            states["timesteps"] = timesteps_visited
        output = DDIMPipelineOutput(images=_join(images), calibrated=fitted is not None, **states)
        return output if return_dict else output.to_tuple()

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the states that the network takes; ValueError where its config has no sample_size."""
        channels, height, width = self._open_shape
        if height is None:
            raise ValueError("the network's config has no sample_size; allowed: latents, or images to encode")
        return channels, height, width

    @property
    def _open_shape(self) -> tuple[int, int | None, int | None]:
        """`state_shape`, with None for the size where the network's config leaves it open."""
        size = self.unet.config.sample_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return self.unet.config.in_channels, height, width

    def check_sampling(
        self,
        batch_size: int = 1,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        num_inference_steps: int | None = None,
        use_clipped_model_output: bool | None = None,
        output_type: str | None = "pil",
        seeds: Sequence[int] | None = None,
        latents: torch.Tensor | None = None,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: "DDIMCustomPipeline | UNet2DModel | None" = None,
        max_batch_size: int | None = None,
    ):
        """Raise ValueError, in one line, where a call with these arguments would."""
        check_whole_numbers(batch_size=batch_size)
        batch_size = count_images(batch_size, class_labels)
        if max_batch_size is not None:
            check_whole_numbers(max_batch_size=max_batch_size)
        if not (is_number(eta) and 0 <= eta <= 1):
            raise ValueError(f"eta is {eta!r}; allowed: 0 (DDIM) to 1 (DDPM)")
        if num_inference_steps is not None:
            self._new_schedule(num_inference_steps)
        _check_scheduler(self.scheduler)
        _step_arguments(self.scheduler, None, batch_size, eta, use_clipped_model_output)
        if seeds is not None and generator is not None:
            raise ValueError("seeds and generator are both given; allowed: one of them")
        if seeds is not None:
            _check_seeds(seeds, batch_size)
        generators = generator if isinstance(generator, list) else [generator] * (generator is not None)
        if not all(isinstance(each, torch.Generator) for each in generators):
            raise ValueError(f"generator is {generator!r}; allowed: torch.Generator(s), or seeds=[1] for ints")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"generator has {len(generator)} entries; allowed: one, or batch_size ({batch_size})")
        if latents is not None and not isinstance(latents, torch.Tensor):
            raise ValueError(f"latents is {type(latents).__name__}; allowed: a torch tensor")
        shape = self._open_shape
        if latents is None:
            shape = self.state_shape
        elif None in shape and latents.ndim == 4:
            shape = (shape[0], *latents.shape[2:])
        if latents is not None and tuple(latents.shape) != (batch_size, *shape):
            raise ValueError(f"latents has shape {tuple(latents.shape)}; allowed: {(batch_size, *shape)}")
        self._check_network(shape)
        self._condition(batch_size, class_labels, guidance_scale, guidance_interval, guide)
        check_output_type(output_type, channels=shape[0])

    def _check_network(self, shape: tuple[int, int, int]):
        """Raise ValueError for a network that does not run here, or not on states of this shape."""
        channels, height, width = shape
        config = self.unet.config
        if config.get("class_embed_type") is not None:
            raise ValueError(
                f"the network's class_embed_type is {config.class_embed_type!r}; allowed: None, with num_class_embeds "
                "or without classes"
            )
        if number_of_classes(self.unet) == 0:
            raise ValueError(
                "the network's num_class_embeds is 1; allowed: None, or classes and the null class, from 2"
            )
        if config.get("out_channels", channels) not in (channels, 2 * channels):
            raise ValueError(
                f"the network's out_channels is {config.out_channels}; allowed with in_channels {channels}: "
                f"{channels}, or {2 * channels} (with a learned variance)"
            )
        multiple = 2 ** (len(config.get("block_out_channels", [channels])) - 1)  # each block but the last halves
        if height % multiple or width % multiple:
            raise ValueError(f"states are {height} x {width}; allowed with this network: multiples of {multiple}")

    def _new_schedule(
        self,
        num_inference_steps: int,
        timesteps: Sequence[int] | None = None,
        clip_sample: bool | None = None,
        weights: Sequence[Sequence[float]] | None = None,
    ) -> SchedulerMixin:
        """A copy of the scheduler with its timesteps set, and with the clipping that is asked for."""
        _check_scheduler(self.scheduler)
        name, ours = type(self.scheduler).__name__, isinstance(self.scheduler, DDIMSchedulerCustom)
        # Of ours nothing changes in use but what set_timesteps makes anew, so that a shallow copy, which is far
        # cheaper, will do.
        scheduler = copy.copy(self.scheduler) if ours else copy.deepcopy(self.scheduler)
        if clip_sample is not None and "clip_sample" in scheduler.config:
            scheduler.register_to_config(clip_sample=clip_sample, thresholding=False)
        elif clip_sample is False and scheduler.config.get("thresholding"):
            scheduler.register_to_config(thresholding=False)
        elif clip_sample:
            raise ValueError(f"clip_sample is True; allowed with {name}, which does not clip: None, False")
        if weights is not None:
            scheduler.set_timesteps(timesteps=timesteps, weights=weights)
        elif timesteps is None:
            if not ours:  # which says what it allows
                check_whole_numbers(num_inference_steps=num_inference_steps)
            try:
                scheduler.set_timesteps(num_inference_steps)
            except (ValueError, IndexError) as error:
                if ours:
                    raise
                raise ValueError(f"num_inference_steps is {num_inference_steps}; {name} says: {error}") from error
        elif "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
            total = scheduler.config.num_train_timesteps
            scheduler.set_timesteps(timesteps=timesteps if ours else check_timesteps(timesteps, total))
        else:
            raise ValueError(f"{name} takes no timesteps; allowed: num_inference_steps")
        return scheduler

    def _noise(self, count: int, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
        """x_T of unit scale, [count, C, H, W]."""
        return randn_tensor((count, *self.state_shape), generator, self._execution_device, self.unet.dtype)

    def _on_device(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self._execution_device, self.unet.dtype)

    def predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        *,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: "DDIMCustomPipeline | UNet2DModel | None" = None,
    ) -> torch.Tensor:
        """What the network, fast sampling's where that is on, predicts for states x [B, C, H, W]; of x's shape.

        Of a network that has learned a variance too (out_channels twice in_channels), which DDIM has no use for, this
        is the first half. Classes and guidance are those of `__call__`.
        """
        condition = self._condition(len(x), class_labels, guidance_scale, guidance_interval, guide)
        return self._predict(x, timestep, condition)

    def _predict(
        self, x: torch.Tensor, timestep: torch.Tensor, condition: Condition, t: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        return guided(self._network, x, timestep, condition, t)

    def _network(self, x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The network's own prediction, for classes [B]."""
        fast = self.fast_network
        if fast is None or (_exactly.get() and fast.dtype != torch.float32):
            output = self.unet(x, timestep, **({} if labels is None else {"class_labels": labels})).sample
        else:
            if not fast.serves(self.unet, x.device):
                self.enable_fast_sampling(*fast.asked_for)
            output = self.fast_network(x, timestep, labels)
        return output[:, : x.shape[1]]

    def _condition(
        self,
        count: int,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: "DDIMCustomPipeline | UNet2DModel | None" = None,
    ) -> Condition:
        """What `count` images are to show, on the network's device."""
        guidance = dict(guidance_scale=guidance_scale, guidance_interval=guidance_interval)
        guide = None if guide is None else self._guide(guide)
        made = make_condition(class_labels, count, self.id2label, guide=guide, **guidance)
        return made.to(self._execution_device)

    def _guide(self, guide: "DDIMCustomPipeline | UNet2DModel") -> Network:
        """A guide as a function that takes this network's states and classes."""
        if not isinstance(guide, DDIMCustomPipeline | UNet2DModel):
            raise ValueError(f"guide is of {type(guide).__name__}; allowed: DDIMCustomPipeline or UNet2DModel")
        if isinstance(guide, UNet2DModel):
            check_guide(self.unet, self.scheduler, guide, None)
            guide = DDIMCustomPipeline(guide, DDIMSchedulerCustom())  # of which no scheduler is used
        else:
            check_guide(self.unet, self.scheduler, guide.unet, guide.scheduler)
            if guide.id2label not in ({}, self.id2label):
                raise ValueError("the guide's classes have other names than the network's; allowed: the same id2label")

        def network(x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            states = guide._on_device(x)
            labels = labels.to(states.device) if guide.id2label else None
            return guide._network(states, timestep, labels).to(x)

        return network

    def _denoise(
        self,
        x: torch.Tensor,
        scheduler: SchedulerMixin,
        condition: Condition,
        step_arguments: dict[str, Any],
        on_step: Callable[[int, int | torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
    ) -> torch.Tensor:
        """Run the whole schedule from x_T; on_step(i, t, x, x_0) gives back the x to go on with."""
        on_device = scheduler.timesteps.to(x.device)
        # Our own step takes Python ints, so that it never waits for the device; others look their tensor up.
        ours = isinstance(scheduler, DDIMSchedulerCustom)
        for i, t in enumerate(scheduler.timesteps.tolist() if ours else scheduler.timesteps):
            output = self._predict(scheduler.scale_model_input(x, t), on_device[i], condition, t)
            stepped = scheduler.step(output, t, x, **step_arguments)
            x = on_step(i, t, stepped.prev_sample, getattr(stepped, "pred_original_sample", None))
        return x

    # Encoding

    @answer_unknown
    @torch.no_grad()
    def invert(
        self,
        images: Any,
        num_inference_steps: int = 50,
        exact: bool = False,
        *,
        timesteps: Sequence[int] | None = None,
        input_type: str = "image",
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: "DDIMCustomPipeline | UNet2DModel | None" = None,
        tolerance: float | None = None,
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
            class_labels, guidance_scale, guidance_interval, guide: as in `__call__`; the latents are decoded with the
                same.
            tolerance: a step has converged when no value changes by more (states have unit scale); None takes what
                the network's dtype can resolve: 1e-5, float16's 0.004 or bfloat16's 0.03.
            max_iterations: iterations of a step after which it warns and keeps its best iterate.
            max_batch_size: pass at most so many images through the network at once.
            return_trajectory: return all states too.

        Raises:
            ValueError: images of the wrong size or range, an argument outside what is listed, or a scheduler whose
                steps have no inverse here (another class, or x0_formula="as_printed").
        """
        self._check_encoding(tolerance, max_iterations, max_batch_size)
        scheduler = self._new_schedule(num_inference_steps, timesteps)
        x0 = images_to_states(images, self._open_shape, input_type)
        self._check_network(tuple(x0.shape[1:]))
        condition = self._condition(len(x0), class_labels, guidance_scale, guidance_interval, guide)
        condition.check_interval_meets(scheduler.timesteps.tolist())
        chunk_size = max_batch_size or len(x0)
        chunks = [slice(start, start + chunk_size) for start in range(0, len(x0), chunk_size)]
        trajectories, residuals = [], []
        with _in_float32(exact), self.progress_bar(total=len(scheduler.timesteps) * len(chunks)) as bar:
            for chunk in chunks:
                x, network = self._on_device(x0[chunk]), partial(self._predict, condition=condition.of(chunk))
                states, residual = encode(network, scheduler, x, exact, tolerance, max_iterations, bar.update)
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
        if tolerance is not None and not (is_number(tolerance) and tolerance > 0):
            raise ValueError(f"tolerance is {tolerance!r}; allowed: above 0")
        check_whole_numbers(max_iterations=max_iterations)
        if max_batch_size is not None:
            check_whole_numbers(max_batch_size=max_batch_size)

    @answer_unknown
    def reconstruct(
        self,
        images: Any,
        num_inference_steps: int = 50,
        exact: bool = False,
        *,
        output_type: str | None = "pil",
        timesteps: Sequence[int] | None = None,
        input_type: str = "image",
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: "DDIMCustomPipeline | UNet2DModel | None" = None,
        tolerance: float | None = None,
        max_iterations: int = 100,
        max_batch_size: int | None = None,
    ) -> DDIMReconstructionOutput:
        """Encode images and sample them back without clipping (paper, section 5.4).

        The arguments are those of `invert`; `output_type` is that of sampling.
        """
        check_output_type(output_type, channels=self._open_shape[0])
        x0 = images_to_states(images, self._open_shape, input_type)
        schedule = dict(num_inference_steps=num_inference_steps, timesteps=timesteps, max_batch_size=max_batch_size)
        solver = dict(tolerance=tolerance, max_iterations=max_iterations)
        guidance = dict(class_labels=class_labels, guidance_scale=guidance_scale)
        guidance |= dict(guidance_interval=guidance_interval, guide=guide)
        encoded = self.invert(x0, exact=exact, input_type="latent", **schedule, **guidance, **solver)
        plainly = dict(clip_sample=False, calibrated=False, output_type="latent")
        with _in_float32(exact):
            decoded = self(len(x0), latents=encoded.latents, **plainly, **schedule, **guidance).images
        # States span [-1, 1], twice the range of pixels in [0, 1].
        mse = ((decoded.float().cpu() - x0.float().cpu()) / 2).square().flatten(1).mean(1)
        return DDIMReconstructionOutput(
            images=states_to_images(decoded, output_type),
            mse=mse,
            latents=encoded.latents,
            residual=encoded.residual,
        )

    @answer_unknown
    def interpolate(
        self,
        *corners: Any,
        num_images: int = 8,
        num_inference_steps: int = 50,
        exact: bool = True,
        output_type: str | None = "pil",
        timesteps: Sequence[int] | None = None,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: "DDIMCustomPipeline | UNet2DModel | None" = None,
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
            class_labels: the corners' classes, one for all or one each; between them the classes' predictions are
                mixed, by shares that are linear along the strip and bilinear in the grid. A prediction of each class
                is made for each image.
            guidance_scale, guidance_interval, guide: as in `__call__`.
            max_batch_size: pass at most so many images through the network at once.
            clip_sample: override the scheduler's clipping of x_0; None does not clip between images.

        Raises:
            ValueError: another number of corners, mixed kinds, or num_images below 2.
        """
        if len(corners) not in (2, 4):
            raise ValueError(f"{len(corners)} corners; allowed: 2 (a strip) or 4 (a grid)")
        check_whole_numbers(num_images=num_images)
        if num_images < 2:
            raise ValueError(f"num_images is {num_images}; allowed: 2 or more")
        check_output_type(output_type, channels=self._open_shape[0])
        schedule = dict(num_inference_steps=num_inference_steps, timesteps=timesteps, max_batch_size=max_batch_size)
        guidance = dict(guidance_scale=guidance_scale, guidance_interval=guidance_interval, guide=guide)
        ids = self.class_ids(class_labels, len(corners))
        if all(isinstance(corner, Image.Image | np.ndarray) for corner in corners):
            each = [images_to_states(corner, self._open_shape) for corner in corners]
            if any(len(states) != 1 for states in each):
                raise ValueError(f"corners of {[len(states) for states in each]} images; allowed: one image each")
            states = torch.cat(each)
            encoding = dict(exact=exact, input_type="latent", class_labels=class_labels)
            latents = self.invert(states, **encoding, **schedule, **guidance).latents
            clip_sample, calibrated = bool(clip_sample), False  # the inverse of plain steps are plain steps
        else:
            exact, calibrated = False, None  # nothing to give back
            latents = self._corner_latents(corners)

        weights = torch.linspace(0, 1, num_images).tolist()
        if len(corners) == 2:
            path = [slerp(*latents, weight) for weight in weights]
        else:
            edges = [(slerp(*latents[:2], weight), slerp(*latents[2:], weight)) for weight in weights]
            path = [slerp(left, right, weight) for weight in weights for left, right in edges]
        if class_labels is not None:
            class_labels = shares_between(ids, num_images, classes=len(self.id2label) + 1)
        sampling = dict(clip_sample=clip_sample, calibrated=calibrated, output_type=output_type)
        sampling |= dict(class_labels=class_labels, **guidance)
        with _in_float32(exact):
            return self(len(path), latents=torch.stack(path), **sampling, **schedule)

    def _corner_latents(self, corners: Sequence[Any]) -> torch.Tensor:
        """[K, C, H, W] latents, of unit scale, of corners that are latents or seeds."""
        if all(isinstance(corner, torch.Tensor) for corner in corners):
            channels, height, width = self._open_shape
            shape = (channels, *corners[0].shape[-2:]) if height is None else (channels, height, width)
            shapes = [tuple(corner.shape) for corner in corners]
            if any(given not in (shape, (1, *shape)) for given in shapes):
                raise ValueError(f"corners have shapes {shapes}; allowed: {shape}")
            return torch.stack([corner.reshape(shape) for corner in corners])
        if all(isinstance(corner, int | np.integer) for corner in corners):
            _check_seeds(corners, len(corners))
            return self._noise(len(corners), [torch.Generator().manual_seed(int(seed)) for seed in corners])
        kinds = ", ".join(type(corner).__name__ for corner in corners)
        raise ValueError(f"corners are {kinds}; allowed: all ints, all tensors, or all PIL images or arrays")

    # Few steps

    @torch.no_grad()
    def calibrate(
        self,
        num_inference_steps: int | Sequence[int] = (5, 6, 8, 10, 15, 20),
        num_images: int = 128,
        teacher_steps: int = 100,
        seed: int = 0,
        max_batch_size: int = 64,
        *,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        callback_on_schedule: Callable[[int], None] | None = None,
    ) -> dict[int, dict[str, dict[str, Any]]]:
        """Fit schedules of few steps to the network, by samples of its own that it takes many steps for.

        The scheduler's config keeps those that come nearer to the many steps' images than as many plain steps do, and
        with it `save_pretrained`; calls use them by themselves (see `__call__`). Each is kept as soon as it is fitted,
        whatever becomes of the others. Under torch.distributed all processes have to call this; they share the work,
        up to one block of 16 images for each.

        Args:
            num_inference_steps: every S, from 1 to teacher_steps - 1.
            num_images: noises, at least 2 for each class: one half to fit to, one to choose and measure with.
            teacher_steps: plain steps that the few are to do the work of, from 2 to T.
            seed: noise k is drawn from seed + k.
            max_batch_size: images through the network at once, if below 16.
            class_labels: the classes that the schedules are to hold for, which the noises take in turn: a name or
                number, several, or "all". None is the null class.
            guidance_scale, guidance_interval: as in `__call__`; the schedules hold for these alone.
            callback_on_schedule: called with each S, in ascending order, once its schedule is fitted and kept or not.

        Returns:
            By S, the root mean square difference from the teacher's images, contrast and band energies of the second
            half's images for "calibrated S", "plain S", "plain 2S", "plain 5S" (where these are fewer than the
            teacher's) and "teacher" steps, as in `figures` of `ddim_hf.calibration.certificate`.

        Raises:
            ValueError: a number outside what is listed, another class of scheduler, or a network whose images are not
                finite.
        """
        if not isinstance(self.scheduler, DDIMSchedulerCustom):
            raise ValueError(f"calibrating {type(self.scheduler).__name__}; allowed: DDIMSchedulerCustom")
        one = np.ndim(num_inference_steps) == 0
        every = sorted({num_inference_steps} if one else set(num_inference_steps))
        if not every:
            raise ValueError("num_inference_steps has no entries; allowed: one or more")
        check_whole_numbers(max_batch_size=max_batch_size)
        check_whole_numbers(num_images=num_images, teacher_steps=teacher_steps, least=2)
        if teacher_steps > len(self.scheduler):
            raise ValueError(f"teacher_steps is {teacher_steps}; allowed: 2 to {len(self.scheduler)}")
        for steps in every:
            check_whole_numbers(num_inference_steps=steps)
            if steps >= teacher_steps:
                raise ValueError(f"num_inference_steps is {steps}; allowed: below teacher_steps ({teacher_steps})")
        self.check_sampling(num_inference_steps=teacher_steps)  # the network too
        guidance = dict(guidance_scale=guidance_scale, guidance_interval=guidance_interval)
        if class_labels is not None:
            classes = len(set(self.labels_in_turn(class_labels)))
            if num_images < 2 * classes:
                raise ValueError(
                    f"num_images is {num_images} with {classes} classes; allowed: from {2 * classes}, so that each "
                    "is in both halves"
                )
            class_labels = self.labels_in_turn(class_labels, range(num_images))
        condition = self._condition(num_images, class_labels, **guidance)

        def draw(numbers: range) -> torch.Tensor:
            return self._noise(len(numbers), [torch.Generator().manual_seed(seed + k) for k in numbers])

        def network(x: torch.Tensor, timestep: torch.Tensor, numbers: range) -> torch.Tensor:
            return self._predict(x, timestep, condition.of(numbers))

        max_batch_size = min(max_batch_size, MOST_IN_A_BLOCK)
        settings = dict(num_images=num_images, teacher_steps=teacher_steps, max_batch_size=max_batch_size)
        record, certificates = dict(weights_hash=self._weights_hash(), seed=seed, **settings), {}
        with self.progress_bar(total=1) as bar:  # which is set when the work is known
            for steps, fitted in fit_schedules(network, self.scheduler, draw, every, bar=bar, **settings):
                keep_schedules(self.scheduler, {steps: fitted}, condition, **record)
                _, certificates[steps] = fitted
                if callback_on_schedule is not None:
                    callback_on_schedule(steps)
        self.maybe_free_model_hooks()
        return certificates

    def calibrated_schedule(
        self,
        num_inference_steps: int,
        *,
        timesteps: Sequence[int] | None = None,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        clip_sample: bool | None = None,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guide: "DDIMCustomPipeline | UNet2DModel | None" = None,
        calibrated: bool | dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Return the fitted timesteps and weights that a call with these arguments samples by; None for plain steps.

        A schedule that was fitted to other weights than the network has is not used, with a warning. Raises ValueError
        where `calibrated` is True and there is none, or a schedule of other steps or beside other settings.
        """
        found, config = None, self.scheduler.config
        other = timesteps is not None or eta > 0 or use_clipped_model_output or clip_sample is not None
        if isinstance(calibrated, dict):
            steps = len(calibrated.get("timesteps", ()))
            fits = not other and steps == num_inference_steps and guide is None
            if not fits or not isinstance(self.scheduler, DDIMSchedulerCustom):
                raise ValueError(
                    f"calibrated is a schedule of {steps} steps with num_inference_steps {num_inference_steps}; "
                    "allowed: one of so many, at eta 0 with nothing else set"
                )
            return calibrated
        if calibrated is not False and not other and isinstance(self.scheduler, DDIMSchedulerCustom):
            condition = self._condition(
                count_images(1, class_labels), class_labels, guidance_scale, guidance_interval, guide
            )
            found = find_schedule(config, num_inference_steps, condition)
        if found and any(parameter.is_meta for parameter in self.unet.parameters()):
            found = None  # offloaded one by one: whose weights they are cannot be told
        if found and config.calibrated_schedules["weights_hash"] != self._weights_hash():
            warnings.warn(
                "the model's few-step schedules were fitted to other weights than it has now and are not used: "
                "call calibrate() again",
                stacklevel=3,
            )
            found = None
        if calibrated and not found:
            there = (config.get("calibrated_schedules") or {}).get("schedules", {})
            raise ValueError(
                f"calibrated is True with num_inference_steps {num_inference_steps}, for which no schedule of these "
                f"weights, classes and settings is there; allowed: {', '.join(there) or 'none'}, at eta 0 with "
                "nothing else set"
            )
        return found

    def _weights_hash(self) -> str:
        """The network's, computed anew only when the weights have changed."""
        mark = weights_mark(self.unet)
        if self._hashed is None or self._hashed[0] != mark:
            self._hashed = mark, weights_hash(self.unet)
        return self._hashed[1]

    # Speed

    def enable_fast_sampling(self, dtype: torch.dtype | None = None, compile: bool = True) -> str:
        """Run the network channels-last, in bf16 where that is faster, and compiled; the states keep their dtype.

        The network itself keeps its forwards; only its weights are laid out channels-last in place, until
        `disable_fast_sampling`. Another pipeline that holds it computes as before, but for the order of float sums.
        Exact encoding, which bf16 cannot resolve, and what `reconstruct` and `interpolate` make of it are in float32
        all the same. Prints what was chosen, and at the first call of each batch size that it compiles.

        Args:
            dtype: torch.bfloat16 or torch.float32; None takes bf16 where the device computes it faster
                (a GPU from its capability, a CPU from a trial of some milliseconds). A network that was loaded in
                another dtype than float32 computes in that one.
            compile: use `torch.compile` (CUDA graphs on a GPU); without a compiler it warns and goes on without.

        Returns:
            What was chosen and why, in one line. It is chosen anew when the pipeline moves to another device.
        """
        self.disable_fast_sampling()
        self.fast_network = FastNetwork(self.unet, self._execution_device, dtype, compile)
        self.fast_network.say(f"fast sampling: {self.fast_network.description}")
        return self.fast_network.description

    def disable_fast_sampling(self):
        """Undo `enable_fast_sampling`."""
        if self.fast_network is not None:
            self.fast_network.undo()
        self.fast_network = None

    # On disk and on the Hub

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "DDIMCustomPipeline":
        """Load a pipeline from a folder or the Hub: ours, or one saved by stock DDPMPipeline or DDIMPipeline.

        Takes the keywords of `DiffusionPipeline.from_pretrained`. Pickled weights are refused unless
        `use_safetensors=False` asks for them by name, or this process itself has saved them to that folder.
        """
        from .hub import load_model

        if kwargs.get("use_safetensors") is None and _resolved(pretrained_model_name_or_path) in _pickled_here:
            kwargs["use_safetensors"] = False
        if not is_accelerate_available():  # else diffusers says in six lines that it does so by itself
            kwargs.setdefault("low_cpu_mem_usage", False)
        return load_model(cls, super().from_pretrained, pretrained_model_name_or_path, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ):
        """Write a folder that this class and every stock diffusers install can load.

        The arguments are those of `DiffusionPipeline.save_pretrained`, and of `push_to_hub` where that is True.
        safe_serialization=False pickles the weights, with a warning. Raises ValueError for a push of pickles.
        """
        if not safe_serialization:
            if push_to_hub:
                raise ValueError("safe_serialization is False; allowed with push_to_hub: True (no pickle is pushed)")
            warnings.warn(
                "the weights are saved as pickles, which from_pretrained loads only with use_safetensors=False",
                stacklevel=2,
            )
        if self.config.get("id2label"):
            self.register_to_config(id2label=self.id2label)  # of the network that is there now
        from .hub.weights import remove_replaced

        to_hub = ("repo_id", "commit_message", "private", "token", "create_pr")
        push = {key: kwargs.pop(key) for key in to_hub if key in kwargs}
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size, **kwargs)
        remove_replaced(Path(save_directory, "unet"), variant, "safetensors" if safe_serialization else "bin")
        _write_stock_names(Path(save_directory))
        (_pickled_here.discard if safe_serialization else _pickled_here.add)(_resolved(save_directory))
        if push_to_hub:
            from .hub import push_to_hub as push_folder

            push_folder(save_directory, push.pop("repo_id", Path(save_directory).name), **push)

    def save_scheduler(self, save_directory: str | Path):
        """Write the scheduler's config alone, into a folder that `save_pretrained` has written.

        Few-step schedules that the folder holds for the same weights and settings stay, save those that the pipeline
        has anew; of others it warns, as they go. Raises ValueError for another folder, and for a checkpoint of a
        training, which goes on only as it was written.
        """
        check_scheduler_folder(Path(save_directory))
        file = Path(save_directory, "scheduler", "scheduler_config.json")
        config = json.loads(self.scheduler.to_json_string())
        with FileLock(file.with_name(f".{file.name}.lock")):  # another calibration may end at the same time
            if there := read_json(file).get("calibrated_schedules"):
                record = add_schedules_of(there, self._record_of_schedules())
                config["calibrated_schedules"] = record if record["schedules"] else None
                if lost := [name for name in there["schedules"] if name not in record["schedules"]]:
                    warnings.warn(
                        f"the few-step schedules in {save_directory} for {', '.join(lost)} were fitted to other "
                        "weights or settings than this model has, and go",
                        stacklevel=2,
                    )
            write_text(file, json.dumps(config, indent=2, sort_keys=True))
            _write_stock_names(Path(save_directory))

    def _record_of_schedules(self) -> dict[str, Any]:
        """The scheduler's own, or one without any schedule."""
        there, sampler = self.scheduler.config.get("calibrated_schedules"), describe_sampler(self.scheduler.config)
        return there or {"weights_hash": self._weights_hash(), "sampler": sampler, "schedules": {}}

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:
        """Push as one commit, with a model card, and return the address; the arguments are those of diffusers."""
        from .hub import push_pipeline

        return push_pipeline(self, repo_id, *args, **kwargs)


def check_scheduler_folder(folder: Path):
    """Raise ValueError where `save_scheduler` would."""
    if (folder / "state.json").is_file():
        raise ValueError(
            f"{folder} is a checkpoint, from which its training goes on only as it was written; allowed: another "
            "folder (--output_dir)"
        )
    if not (folder / "model_index.json").is_file() or not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise ValueError(
            f"{folder} has no model_index.json with scheduler/scheduler_config.json beside it; allowed: what "
            "save_pretrained has written, or another folder (--output_dir)"
        )


OUR_KEYS = ("skip_type", "x0_formula", "variance", "calibrated_schedules")  # which stock does not have
_pickled_here: set[Path] = set()  # the folders that this process has saved pickles to


def _resolved(folder: str | Path) -> Path:
    return Path(folder).resolve()


def _write_stock_names(folder: Path):
    """Name diffusers' own classes in a saved folder; our scheduler keys stay where they differ from their defaults."""
    index_file, scheduler_file = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    index = json.loads(index_file.read_text())
    index.update(_class_name="DDIMPipeline", unet=["diffusers", "UNet2DModel"])
    config = json.loads(scheduler_file.read_text())
    if config["_class_name"] == "DDIMSchedulerCustom":  # another one, swapped in, is of stock already
        defaults = inspect.signature(DDIMSchedulerCustom.__init__).parameters
        config = {key: value for key, value in config.items() if key not in OUR_KEYS or value != defaults[key].default}
        config["_class_name"] = "DDIMScheduler"
        text = json.dumps(config, indent=2)
        text = re.sub(
            r"\[[^][{}]*]", lambda numbers: " ".join(numbers[0].split()), text
        )  # lists of numbers in one line
        write_text(scheduler_file, text + "\n")
    index["scheduler"] = ["diffusers", config["_class_name"]]
    write_text(index_file, json.dumps(index, indent=2) + "\n")


_exactly: ContextVar[bool] = ContextVar("exactly", default=False)  # of this thread's call: not in bf16


@contextmanager
def _in_float32(wanted: bool) -> Iterator[None]:
    """Have fast sampling not compute in bf16 here, if `wanted`."""
    token = _exactly.set(wanted or _exactly.get())
    try:
        yield
    finally:
        _exactly.reset(token)


def slerp(start: torch.Tensor, end: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the point at `weight` (0 start, 1 end) on the great circle between two tensors of one shape (eq. 67)."""
    cosine = torch.cosine_similarity(start.flatten().cpu().double(), end.flatten().cpu().double(), dim=0)
    angle = math.acos(max(-1.0, min(cosine.item(), 1.0)))
    if math.sin(angle) < 1e-6:  # same or opposite directions: no one great circle to follow
        return torch.lerp(start, end, weight)
    return math.sin((1 - weight) * angle) / math.sin(angle) * start + math.sin(weight * angle) / math.sin(angle) * end


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python's or numpy's; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole_numbers(*, least: int = 1, **numbers: Any):
    """Raise ValueError, with the name, for a value that is no whole number from `least` up."""
    for name, value in numbers.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(f"{name} is {value!r}; allowed: whole numbers from {least}")


def _check_seeds(seeds: Sequence[int], batch_size: int):
    if np.shape(seeds) != (batch_size,):
        raise ValueError(f"seeds has shape {np.shape(seeds)}; allowed: one int per image, ({batch_size},)")
    for seed in seeds:
        try:
            fits = -(2**63) <= operator.index(seed) < 2**64  # what torch.Generator takes
        except TypeError:
            fits = False
        if not fits or isinstance(seed, bool):
            raise ValueError(f"seeds has {seed!r}; allowed: ints of 64 bits")


def _check_scheduler(scheduler: SchedulerMixin):
    """Raise ValueError for a scheduler that cannot bring noise to data with a network trained on betas."""
    name = type(scheduler).__name__
    step = inspect.signature(scheduler.step).parameters if hasattr(scheduler, "step") else {}
    required = {key for key, parameter in step.items() if parameter.default is parameter.empty}
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("prediction_type") == "flow_prediction":
        reason = "its process is not that of a network trained on betas"
    elif not required <= {"model_output", "timestep", "sample"}:
        reason = f"its step needs {', '.join(sorted(required - {'model_output', 'timestep', 'sample'}))} too"
    elif "Inverse" in name:
        reason = "it goes from data to noise"
    elif scheduler.config.get("variance_type") in ("learned", "learned_range"):
        reason = f"its variance_type is {scheduler.config.variance_type}, and no variance of the network is passed on"
    else:
        return
    raise ValueError(f"the scheduler is {name}: {reason}; allowed: those that docs/api.md lists")


def _step_arguments(
    scheduler: SchedulerMixin,
    generator: torch.Generator | list[torch.Generator] | None,
    count: int,
    eta: float,
    use_clipped_model_output: bool | None,
) -> dict[str, Any]:
    """What `scheduler.step` is to be given beside the states of `count` images.

    Raises ValueError for eta or use_clipped_model_output where the scheduler's step takes none.
    """
    name, accepted = type(scheduler).__name__, inspect.signature(scheduler.step).parameters
    asked_for = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
    for key, value in asked_for.items():
        if value and key not in accepted:
            raise ValueError(f"{key} is {value}; allowed with {name}, whose step takes none: {type(value)()}")
    arguments = {key: value for key, value in asked_for.items() if key in accepted}
    if "generator" in accepted:
        arguments["generator"] = generator
    elif hasattr(scheduler, "noise_sampler_seed") and generator is not None:  # its noise comes from seeds of its own
        generators = generator if isinstance(generator, list) else [generator] * count
        seeds = [torch.randint(2**63 - 1, (), generator=each, device=each.device).item() for each in generators]
        scheduler.noise_sampler_seed = seeds
    return arguments


def _join(parts: list) -> Any:
    """The batches of one call as a whole."""
    if isinstance(parts[0], list):
        return [image for part in parts for image in part]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(parts)
