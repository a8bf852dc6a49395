"""The models that a page shows: its own, and others that visitors name where its owner allows that."""

import threading
from collections import OrderedDict

from ..generation import load_pipeline
from ..pipeline_ddim_custom import DDIMCustomPipeline


class Models:
    """Pipelines by name, the last few of them loaded; a visitor's choice changes nothing for the others.

    Args:
        own: the page's own model, a folder or an id on the Hub, which is loaded at once and stays.
        allow_others: whether other names than "" and `own` are loaded.
        kept: how many models stay loaded.

    Raises:
        OSError, ValueError: it cannot be loaded, or not sampled from.
    """

    def __init__(self, own: str, allow_others: bool, kept: int):
        self.own, self.allow_others, self._kept = own, allow_others, kept
        self._lock, self._loaded = threading.Lock(), OrderedDict()
        self._own = self._sampling(own)

    def get(self, name: str = "", *, anew: bool = False) -> DDIMCustomPipeline:
        """The model of a name; "" is the page's own. Raises as the constructor does, and where it is not allowed.

        `anew` reads it from where it lies, for all visitors, though it is loaded already.
        """
        if name in ("", self.own):
            self._own = self._sampling(self.own) if anew else self._own
            return self._own
        if not self.allow_others:
            raise PermissionError("this page shows one model alone; its owner can allow others with --allow_models")
        with self._lock:
            pipe = self._sampling(name) if anew or name not in self._loaded else self._loaded[name]
            self._loaded[name] = pipe
            self._loaded.move_to_end(name)
            while len(self._loaded) > self._kept - 1:  # the own one counts
                self._loaded.popitem(last=False)
            return pipe

    def _sampling(self, name: str) -> DDIMCustomPipeline:
        pipe = load_pipeline(name)
        pipe.check_sampling()
        return pipe
