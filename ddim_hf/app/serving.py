"""The page on this machine's own address."""

import threading
from pathlib import Path

import gradio as gr

from .limits import Limits
from .page import build_page
from .watching import closing

HERE = Path(__file__).parent
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]  # none from elsewhere
MONOSPACE = ["ui-monospace", "Menlo", "DejaVu Sans Mono", "monospace"]


def serve(model: str, *, allow_models: bool = False, port: int | None = None):
    """Open the page of a model, print its address, and serve it until Ctrl-C.

    Args:
        model: a folder or an id on the Hub.
        allow_models: let visitors name others, folders of this machine among them.
        port: the first free one from 7860 if None.

    The address is that of this machine alone, 127.0.0.1, unless GRADIO_SERVER_NAME says otherwise, as it does in a
    Space. Raises OSError for a port that is taken, and as `build_page` does.
    """
    closing.clear()
    limits = Limits()
    blocks = build_page(model, allow_models=allow_models, limits=limits)
    blocks.launch(
        server_port=port,
        quiet=True,
        prevent_thread_lock=True,
        share=False,
        ssr_mode=False,
        max_file_size=limits.upload_megabytes * 2**20,
        state_session_capacity=limits.visitors,
        theme=gr.themes.Default(primary_hue="indigo", font=FONTS, font_mono=MONOSPACE),
        head=f"<style>{(HERE / 'page.css').read_text()}</style><script>{(HERE / 'page.js').read_text()}</script>",
    )
    print(f"{model} is shown at {blocks.local_url} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("The page is closed.", flush=True)
    finally:
        closing.set()  # a request ends before its next pass through the network
        blocks.close(verbose=False)
