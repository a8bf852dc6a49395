"""The page: what stands where, and which request a button starts."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..pipeline_ddim_custom import DDIMCustomPipeline
from . import requests
from .controls import steps_slider
from .limits import Limits
from .models import Models
from .pictures import alert, data_address, gallery, message, png
from .requests import View
from .settings import LARGEST_GUIDANCE, LARGEST_SEED, Settings, calibrated_steps, default_settings, taus_of, whole
from .uploads import drawing, read_upload

logger = logging.getLogger(__name__)

# Requests of the network take turns. Other programs use /images; the buttons' endpoints are the page's own. Values
# come as they were sent: Gradio would judge them by choices that may have changed, and uploads in words of its own.
IN_TURN = dict(
    concurrency_id="network", concurrency_limit=1, api_visibility="private", show_progress="minimal", preprocess=False
)
AT_ONCE = dict(queue=False, api_visibility="private", show_progress="hidden", preprocess=False)
# The page's address becomes the pictures', and the link whole; a page that is opened by such an address makes them.
# Where there are no pictures, there is no link, and the address names none.
SHOW_LINK = """(link) => {
  const address = new URL(link || location.pathname, location.href);
  history.replaceState(null, "", address);
  return link && address.href;
}"""
FOLLOW_LINK = """() => {
  if (new URLSearchParams(location.search).has("seed")) document.querySelector("#generate").click();
}"""


def build_page(model: str, *, allow_models: bool = False, limits: Limits | None = None) -> gr.Blocks:
    """The page of a model, to be launched.

    Args:
        model: a folder or an id on the Hub.
        allow_models: let visitors name others, folders of this machine among them.
        limits: of a request.

    Raises:
        OSError, ValueError: the model cannot be loaded, or not sampled from.
    """
    limits = limits or Limits()
    with gr.Blocks(title="DDIM", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        page = Page(Models(model, allow_models, limits.models), limits)
        page.lay_out(blocks)
    return blocks.queue(max_size=limits.waiting)


class Page:
    """The parts of one page, and what they do."""

    def __init__(self, models: Models, limits: Limits):
        self.models, self.limits = models, limits
        # The model that this visitor has named; the browser keeps it, as it keeps the heading. "" is the page's own.
        self.named = gr.Textbox("", visible=False)
        self.following = []  # (component, what of it follows the model and the settings), see `add`
        self.results = []  # (component, what it shows where there is no result)

    def add(self, kind: Callable, follow: Callable[[DDIMCustomPipeline, Settings], dict], **fixed: Any) -> Any:
        """A component whose properties `follow(pipeline, settings)` change with the model, and by a link."""
        pipe = self.models.get()
        component = kind(**follow(pipe, default_settings(pipe)), **fixed)
        self.following.append((component, follow))
        return component

    def follow(self, pipe: DDIMCustomPipeline, settings: Settings) -> list:
        """The updates of all that `add` has made."""
        return [gr.update(**follow(pipe, settings)) for _, follow in self.following]

    def lay_out(self, blocks: gr.Blocks):
        self.add(gr.HTML, lambda pipe, settings: {"value": _heading(pipe, settings.model or self.models.own)})
        choice = self._model_choice() if self.models.allow_others else None
        for title, tab in [
            ("Sample", self._sample),
            ("Compare", self._compare),
            ("Encode", self._encode),
            ("Interpolate", self._interpolate),
            ("Look into", self._look_into),
        ]:
            with gr.Tab(title):
                tab()
        _html(f"<small>{self.limits.in_words()}</small>")
        followed = [self.named, *(component for component, _ in self.following)]
        opened = blocks.load(self._open_link, None, followed, api_visibility="private", show_progress="hidden")
        opened.success(None, js=FOLLOW_LINK, **AT_ONCE)
        if choice:
            name, load, status = choice
            shown = [status, *followed, *(component for component, _ in self.results)]
            loaded = gr.on([load.click, name.submit], self._load, [name, self.named], shown, **IN_TURN)
            loaded.then(None, self.link, self.link, js=SHOW_LINK, **AT_ONCE)
        gr.api(self.images, api_name="images", concurrency_id="network", concurrency_limit=1)

    # Parts that several tabs have

    def _steps(self, steps: int | None = None) -> gr.HTML:
        """The number of steps; `steps` where it does not follow a link's settings."""

        def follow(pipe: DDIMCustomPipeline, settings: Settings) -> dict:
            most = len(pipe.scheduler)
            return {"value": min(steps or settings.steps, most), "most": most}

        return self.add(steps_slider, follow)

    def _seed(self, label: str, value: int | None = None) -> gr.Number:
        follow = (lambda pipe, settings: {"value": settings.seed}) if value is None else (lambda *_: {"value": value})
        return self.add(gr.Number, follow, label=label, precision=0, minimum=0, maximum=LARGEST_SEED)

    def _class(self) -> tuple[gr.Dropdown, gr.Slider]:
        """The class and its guidance, for models that have classes."""

        def label(pipe: DDIMCustomPipeline, settings: Settings) -> dict:
            names = list(pipe.id2label.values())
            return {"choices": [("none in particular", ""), *names], "value": settings.label, "visible": bool(names)}

        def guidance(pipe: DDIMCustomPipeline, settings: Settings) -> dict:
            return {"value": settings.guidance, "visible": bool(pipe.id2label)}

        scale = dict(
            label="Guidance",
            info="How strongly the class is held to; 1 is none",
            minimum=1,
            maximum=LARGEST_GUIDANCE,
            step=0.1,
        )
        return self.add(gr.Dropdown, label, label="Class"), self.add(gr.Slider, guidance, **scale)

    def _eta_and_tau(self, steps: gr.HTML, condition: tuple[gr.Dropdown, gr.Slider]) -> tuple[gr.Slider, gr.Radio]:
        def tau(pipe: DDIMCustomPipeline, settings: Settings) -> dict:
            fitted = ", ".join(map(str, calibrated_steps(pipe)))
            there = f"for {fitted} steps at eta 0" if fitted else "this model has none"
            info = f"Which timesteps are taken. Calibrated: fitted to the model; {there}"
            offered = taus_of(pipe, settings.steps, settings.eta, **settings.condition)
            return {"choices": offered, "value": settings.tau, "info": info}

        def offer(named: str, steps: int, eta: float, chosen: str, label: str, guidance: float) -> dict:
            try:
                settings = Settings(steps=steps, eta=eta, label=label, guidance=guidance)
                offered = taus_of(self.models.get(named), settings.steps, settings.eta, **settings.condition)
            except (ValueError, OSError):
                return gr.skip()  # the request will say what is wrong
            return gr.update(choices=offered, value=chosen if chosen in offered else offered[0])

        with gr.Accordion("More settings", open=False):
            scale = dict(label="Eta", info="0 is DDIM, 1 is DDPM: fresh noise in each step", minimum=0, maximum=1)
            eta = self.add(gr.Slider, lambda pipe, settings: {"value": settings.eta}, step=0.05, **scale)
            radio = self.add(gr.Radio, tau, label="Schedule (tau)")
        label, guidance = condition
        changed = [control.change for control in (steps, eta, label, guidance)]
        gr.on(changed, offer, [self.named, steps, eta, radio, label, guidance], radio, **AT_ONCE)
        return eta, radio

    def _buttons(self, label: str, **options: Any) -> tuple[gr.Button, gr.Button]:
        with gr.Row():
            start = gr.Button(label, variant="primary", scale=3, min_width=120, **options)
            return start, gr.Button("Cancel", variant="secondary", scale=1, min_width=80)

    def _results(self, invitation: str, places: int = 0) -> tuple[gr.HTML, gr.HTML]:
        empty = gallery([None] * places, [f"image {k + 1}" for k in range(places)]) if places else ""
        return self._result(_html(message(invitation))), self._result(_html(empty))

    def _result(self, component: Any) -> Any:
        """A component of a request's result: it is again as it is now when another model is loaded."""
        self.results.append((component, component.value))
        return component

    def _answer(self, buttons: tuple, request: Callable[..., Iterator[View]], inputs: list, outputs: list) -> Any:
        """Let the first button start request(pipeline, model's name, *inputs), and the second end it."""

        def answer(named: str, *values: Any) -> Iterator[list]:
            missing = ""  # the first view takes what an earlier request has left
            try:
                for shown in request(self.models.get(named), named, *values):
                    yield [missing if part is None else part for part in shown]
                    missing = gr.skip()
            except (ValueError, OSError) as error:
                yield [alert(str(error)), *[gr.skip()] * (len(outputs) - 1)]
            except Exception:
                logger.exception("a request failed")
                sorry = "This request failed on the server, which goes on. Other settings may work."
                yield [alert(sorry), *[gr.skip()] * (len(outputs) - 1)]

        start, cancel = buttons
        event = start.click(answer, [self.named, *inputs], outputs, show_progress_on=outputs[0], **IN_TURN)
        stopped = cancel.click(None, cancels=event, api_visibility="private")
        stopped.then(lambda: message("Stopped."), None, outputs[0], **AT_ONCE)  # after what was still under way
        return event

    # Tabs

    def _sample(self):
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                buttons = self._buttons("Generate", elem_id="generate")
                status, pictures = self._results("Press Generate: images form here, step by step.", Settings.images)
                files = self._result(_html())
                with gr.Accordion("The same images again: a link, and three lines of Python", open=False):
                    link = self.link = self._result(gr.Textbox("", label="Link", interactive=False))
                    code = self._result(
                        gr.Code("", label="Python", language="python", lines=3, wrap_lines=True, interactive=False)
                    )
            with gr.Column(scale=1, min_width=280):
                most = dict(minimum=1, maximum=self.limits.images, step=1)
                images = self.add(gr.Slider, lambda pipe, settings: {"value": settings.images}, label="Images", **most)
                steps = self._steps()
                label, guidance = self._class()
                seed = self._seed("First seed")
                eta, tau = self._eta_and_tau(steps, (label, guidance))

        def request(pipe: DDIMCustomPipeline, named: str, *values: Any) -> Iterator[tuple]:
            settings = Settings(*values, model=named).offered(pipe)
            again = f"?{settings.query()}", settings.python(pipe, self.limits, named or self.models.own)
            for view in requests.sample(pipe, settings, self.limits):
                yield view.status, view.pictures, view.files, *(again if view.files else (None, None))

        inputs = [images, steps, eta, tau, seed, label, guidance]
        event = self._answer(buttons, request, inputs, [status, pictures, files, link, code])
        event.then(None, link, link, js=SHOW_LINK, **AT_ONCE)

    def _compare(self):
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                buttons = self._buttons("Compare")
                status, pictures = self._results(
                    "Press Compare: the same seeds in few steps and in many, by each schedule."
                )
                _html("<small>The numbers: root mean square difference from the most steps, pixels in [0, 1].</small>")
            with gr.Column(scale=1, min_width=280):
                images = gr.Slider(1, 8, 2, step=1, label="Images")
                seed = self._seed("First seed")
                label, guidance = self._class()

        def request(pipe: DDIMCustomPipeline, named: str, images: int, seed: int, label: str, guidance: float):
            settings = Settings(images=images, seed=seed, label=label, guidance=guidance, model=named)
            for view in requests.compare(pipe, settings, self.limits):
                yield view.status, view.pictures

        self._answer(buttons, request, [images, seed, label, guidance], [status, pictures])

    def _encode(self):
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = _upload("Your image")
                self._examples(image)
                buttons = self._buttons("Encode and decode")
                status, pictures = self._results("Choose an image, then press Encode and decode. Exact takes a while.")
                _html("<small>The error: mean square of the difference, pixels in [0, 1].</small>")
            with gr.Column(scale=1, min_width=280):
                steps = self._steps()

        def request(pipe: DDIMCustomPipeline, named: str, sent: dict | None, steps: int):
            original = read_upload(_file(image, sent), pipe, self.limits)
            for view in requests.encode(pipe, original, whole(steps, "steps"), self.limits):
                yield view.status, view.pictures

        self._answer(buttons, request, [image, steps], [status, pictures])

    def _interpolate(self):
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Row() as seeds:
                    ends = [self._seed(label, value) for label, value in (("From seed", 0), ("To seed", 1))]
                with gr.Row(visible=False) as uploads:
                    images = [_upload(label) for label in ("From image", "To image")]
                buttons = self._buttons("Interpolate")
                status, pictures = self._results("Press Interpolate, then move along the great circle by the slider.")
            with gr.Column(scale=1, min_width=280):
                kind = gr.Radio(["seeds", "images"], value="seeds", label="Between two")
                length = gr.Slider(3, 32, 9, step=1, label="Images")
                steps = self._steps()

        def choose(kind: str) -> list:
            return [gr.update(visible=kind == "seeds"), gr.update(visible=kind == "images")]

        def request(pipe: DDIMCustomPipeline, named: str, kind: str, *values: Any):
            *ends, length, steps = values
            if kind == "images":
                files = [_file(image, sent) for image, sent in zip(images, ends[2:], strict=True)]
                corners = [read_upload(file, pipe, self.limits) for file in files]
            else:
                corners = [whole(seed, "seed") for seed in ends[:2]]
            for view in requests.interpolate(
                pipe, corners, whole(length, "images"), whole(steps, "steps"), self.limits
            ):
                yield view.status, view.pictures

        kind.change(choose, kind, [seeds, uploads], **AT_ONCE)
        self._answer(buttons, request, [kind, *ends, *images, length, steps], [status, pictures])

    def _look_into(self):
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                buttons = self._buttons("Look into")
                status, pictures = self._results(
                    "Press Look into: one image from noise, and what the network sees in it."
                )
            with gr.Column(scale=1, min_width=280):
                seed = self._seed("Seed")
                steps = self._steps()
                label, guidance = self._class()
                eta, tau = self._eta_and_tau(steps, (label, guidance))

        def request(pipe: DDIMCustomPipeline, named: str, *values: Any):
            for view in requests.look_into(pipe, Settings(1, *values, model=named).offered(pipe), self.limits):
                yield view.status, view.pictures

        self._answer(buttons, request, [steps, eta, tau, seed, label, guidance], [status, pictures])

    def _examples(self, image: gr.Image):
        """Buttons that bring an image for those who have none at hand."""
        with gr.Row():
            boat, sampled = gr.Button("Example: a drawing", size="sm"), gr.Button("Example: a sample", size="sm")
        boat.click(drawing, None, image, **AT_ONCE)

        def draw_one(named: str) -> Image.Image:
            pipe = self.models.get(named)
            return requests.images_of(pipe, replace(default_settings(pipe), images=1, seed=3), self.limits)[0]

        sampled.click(draw_one, self.named, image, **IN_TURN)

    # The model, the link, other programs

    def _model_choice(self) -> tuple[gr.Textbox, gr.Button, gr.HTML]:
        with gr.Accordion("Another model", open=False):
            name = gr.Textbox(label="Folder, or id on the Hub", placeholder="org/model", max_lines=1)
            return name, gr.Button("Load", size="sm"), _html()

    def _load(self, name: str, named: str) -> list:
        """Change this visitor's model, or say why it stays."""
        name = name.strip()
        try:
            pipe = self.models.get(name, anew=True)
        except (ValueError, OSError) as error:
            stays = f"{error}. The page stays with {named or self.models.own}."
            return [alert(stays), *[gr.skip()] * (1 + len(self.following) + len(self.results))]
        settings = replace(default_settings(pipe), model="" if name == self.models.own else name)
        empty = [empty for _, empty in self.results]
        return [message(f"Loaded {name or self.models.own}."), settings.model, *self.follow(pipe, settings), *empty]

    def _open_link(self, request: gr.Request) -> list:
        """The controls as the page's address says."""
        try:
            asked = Settings.from_query(dict(request.query_params))
            settings = asked or default_settings(self.models.get())
            pipe = self.models.get(settings.model)
            if asked:
                asked.check(pipe, self.limits)
            return [settings.model, *self.follow(pipe, settings)]
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), title="This link does not work", print_exception=False) from error

    def images(
        self,
        num_images: int = 1,
        steps: int = 10,
        seed: int = 0,
        eta: float = 0.0,
        tau: str = "uniform",
        label: str = "",
        guidance: float = 1.0,
    ) -> list[str]:
        """Sample images from seed, seed + 1, ...: a list of PNG files as data addresses."""
        try:
            settings = Settings(num_images, steps, eta, tau, seed, label, guidance)
            made = requests.images_of(self.models.get(), settings, self.limits)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [data_address(png(image), "png") for image in made]


def _heading(pipe: DDIMCustomPipeline, name: str) -> str:
    channels, height, width = pipe.state_shape
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    return (
        f"<h1>Images from noise</h1><p>The model <b>{escape(name)}</b> makes {kind} images of {height} × {width} "
        f"pixels by DDIM, in 1 to {len(pipe.scheduler)} steps. Start with Generate.</p>"
    )


def _html(value: str = "") -> gr.HTML:
    """HTML that page.css alone lays out."""
    return gr.HTML(value, apply_default_css=False, elem_classes="plain")


def _upload(label: str) -> gr.Image:
    """A file or a camera's picture."""
    sources = ["upload", "webcam", "clipboard"]
    return gr.Image(type="filepath", image_mode=None, sources=sources, label=label, height=220, min_width=120)


def _file(component: gr.Image, sent: dict | None) -> str | None:
    """Where the file lies that was sent through a component, if one was.

    Gradio checks the paths of what is marked as an upload. The mark comes from the visitor, and without it a path is
    any: so ValueError for one outside of the folder that uploads lie in.
    """
    path = sent and sent["path"]
    if path and not Path(path).resolve().is_relative_to(Path(component.GRADIO_CACHE).resolve()):
        raise ValueError("this is a path and no upload; allowed: a file that is sent")
    return path
