"""Pictures as HTML that holds them itself: no file is written for a visitor, and none can be asked for."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from ..images import image_grid


def data_address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def gif(frames: Sequence[Image.Image]) -> bytes:
    """An animation of three seconds, whose last frame stays for two more."""
    file, each = io.BytesIO(), max(20, round(3000 / len(frames)))
    durations = [each] * (len(frames) - 1) + [2000]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return file.getvalue()


def picture(image: Image.Image | None, description: str) -> str:
    """One image of the page; an empty place where there is none yet."""
    if image is None:
        return f'<span class="place" role="img" aria-label="{escape(description)}: not there yet"></span>'
    return f'<img alt="{escape(description)}" title="{escape(description)}" src="{data_address(png(image), "png")}">'


def gallery(images: Sequence[Image.Image | None], captions: Sequence[str]) -> str:
    """Images side by side with a caption below each."""
    figures = [
        f"<figure>{picture(image, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in zip(images, captions, strict=True)
    ]
    return f'<div class="gallery{" few" if len(figures) <= 8 else ""}">{"".join(figures)}</div>'


def comparison(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[list[Image.Image], str]]]]) -> str:
    """A table of small groups of images: a row is its name and its cells, each images and a note."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = []
    for name, cells in rows:
        shown = [_group(*cell, f"{name}, {column}") for cell, column in zip(cells, columns, strict=True)]
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(shown)}</tr>')
    return f'<table class="comparison"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _group(images: list[Image.Image], note: str, name: str) -> str:
    shown = "".join(picture(image, f"{name}: image {k + 1}") for k, image in enumerate(images))
    return f'<td><div class="cell">{shown}</div><small>{escape(note)}</small></td>'


def strip(label: str, rows: Sequence[Sequence[Image.Image]], captions: Sequence[Sequence[str]], chosen: int) -> str:
    """Rows of images with one slider over them, and the chosen column in large above."""
    last = len(rows[0]) - 1
    large = "".join(
        f"<figure>{picture(row[chosen], names[chosen])}<figcaption>{escape(names[chosen])}</figcaption></figure>"
        for row, names in zip(rows, captions, strict=True)
    )
    small = "".join(
        f'<div class="reel">{"".join(map(picture, row, names))}</div>'
        for row, names in zip(rows, captions, strict=True)
    )
    return (
        f'<div class="strip"><div class="large">{large}</div>'
        f'<label>{escape(label)} <input type="range" min="0" max="{last}" value="{chosen}" '
        f'aria-valuetext="{escape(captions[0][chosen])}" oninput="ddim_choose(this)"></label>{small}</div>'
    )


def downloads(name: str, images: Sequence[Image.Image], frames: Sequence[Image.Image]) -> str:
    """Links to the images as one PNG, pixel for pixel, and to how they formed as a GIF."""
    files = [("png", png(image_grid(images, side=1))), ("gif", gif(frames))]
    return " ".join(
        f'<a class="file" download="{escape(name)}.{kind}" href="{data_address(content, kind)}">'
        f"Download {kind.upper()}</a>"
        for kind, content in files
    )


def progress(text: str, fraction: float | None = None) -> str:
    """How a request goes; a bar without an end where that is not known."""
    value = "" if fraction is None else f' value="{fraction:.3f}"'
    return f'<div role="status"><progress aria-label="progress"{value}></progress> {escape(text)}</div>'


def message(text: str) -> str:
    return f'<div role="status">{escape(text)}</div>'


def alert(text: str) -> str:
    return f'<div role="alert" class="alert">{escape(text)}</div>'
