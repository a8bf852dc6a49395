"""A call of a pipeline that can be watched, and stopped between two passes through the network."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from ..pipeline_ddim_custom import DDIMCustomPipeline

INTERVAL = 0.1  # seconds between two batches, or two things shown, that a visitor is told of
# Requests take turns: two at once would only slow each other down, and hold the memory of both.
network_thread = ThreadPoolExecutor(1, thread_name_prefix="network")
closing = threading.Event()  # the server ends, which waits for the network's thread


@dataclass
class Moment:
    """How far a call has come: batches through the network, seconds, and what it last showed."""

    batches: int = 0
    seconds: float = 0.0
    latest: Any = None


class Stopped(InterruptedError):
    """Whoever watched has gone, or the server ends."""


def watch(
    pipe: DDIMCustomPipeline,
    work: Callable[[DDIMCustomPipeline, Callable[[Any], None]], Any],
    view: Callable[[Moment], Any],
) -> Iterator[Any]:
    """Run work(pipeline, show) in the network's thread; yield view(moment); return what it returns, and its seconds.

    `pipeline` is a copy of `pipe` over the same network; what is given to `show` is in the next moment, or superseded.
    The first view is of the start, so that work which fails at once has had one too. Closing this generator stops the
    work before its next pass, and so does `closing`, which raises Stopped. Batches, and what is shown, come at most
    once in INTERVAL seconds each.
    """
    news, stopped, began = SimpleQueue(), threading.Event(), time.perf_counter()
    watched = copy.copy(pipe)

    def network(*inputs: Any) -> Any:
        if stopped.is_set() or closing.is_set():
            raise Stopped("the request was stopped: the server ends")
        output = pipe._network(*inputs)
        news.put(("batch", None))
        return output

    watched._network = network  # every pass of every method goes through it
    done = network_thread.submit(work, watched, lambda shown: news.put(("shown", shown)))
    done.add_done_callback(lambda _: news.put(("end", None)))
    moment, kind, last = Moment(), "", {"batch": -INTERVAL, "shown": -INTERVAL}
    try:
        yield view(moment)
        while kind != "end":
            kind, shown = news.get()
            moment.batches += kind == "batch"
            moment.latest = shown if kind == "shown" else moment.latest
            moment.seconds = time.perf_counter() - began
            if kind != "end" and news.empty() and moment.seconds - last[kind] >= INTERVAL:
                last[kind] = moment.seconds
                yield view(moment)
        return done.result(), moment.seconds
    finally:
        stopped.set()


def result(watched: Iterator[Any]) -> Any:
    """What the work of `watch` returns, for those who wait for that alone."""
    while True:
        try:
            next(watched)
        except StopIteration as end:
            return end.value[0]
