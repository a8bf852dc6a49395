"""A visitor of the page, as a browser is one: it keeps the controls' values, sends them, and shows what comes back."""

import json
import urllib.request
from typing import Any
from uuid import uuid4

from gradio_client.utils import apply_diff


class Visitor:
    """Opens the page at an address, with `query` after it; `errors` is what the page has said in its corner."""

    def __init__(self, address: str, query: str = ""):
        self.address, self.query, self.errors, self._session = address.rstrip("/"), query, [], uuid4().hex
        config = json.loads(self._ask("/config"))
        self._events, self._parts = config["dependencies"], {part["id"]: part for part in config["components"]}
        self._values = {number: part["props"].get("value") for number, part in self._parts.items()}
        self._send(next(event for event in self._events if (None, "load") in map(self._origin, event["targets"])))

    def press(self, button: str):
        """Press the first button of a name, and wait for the request's end."""
        self._send(next(event for event in self._events if (button, "click") in map(self._origin, event["targets"])))

    def set(self, **values: Any):
        """Change all controls of a label, with `_` for its spaces."""
        for number, part in self._parts.items():
            label = str(part["props"].get("label")).replace(" ", "_")
            self._values[number] = values.get(label, self._values[number])

    @property
    def shown(self) -> str:
        """All that stands on the page."""
        return "\n".join(value for value in self._values.values() if isinstance(value, str))

    def _origin(self, target: list) -> tuple[str | None, str]:
        number, event = target
        known = event == "click" and number in self._parts
        return (self._parts[number]["props"].get("value") if known else None), event

    def _send(self, event: dict):
        values = [None if self._parts[one]["type"] == "state" else self._values[one] for one in event["inputs"]]
        data = {"data": values, "fn_index": event["id"], "session_hash": self._session}
        self._ask(f"/gradio_api/queue/join{self.query}", data)
        sent: list = []
        for line in self._ask(f"/gradio_api/queue/data?session_hash={self._session}").splitlines():
            told = json.loads(line.removeprefix("data: ") or "{}")
            if told.get("msg") not in ("process_generating", "process_completed"):
                continue
            if not told["success"]:
                self.errors.append(told["output"]["error"])
                continue
            parts = told["output"]["data"]
            whole = not sent or told["msg"] == "process_completed"
            sent = parts if whole else [apply_diff(old, new) for old, new in zip(sent, parts, strict=True)]
            for number, value in zip(event["outputs"], sent, strict=True):
                update = isinstance(value, dict) and value.get("__type__") == "update"
                self._values[number] = value.get("value", self._values[number]) if update else value

    def _ask(self, path: str, data: dict | None = None) -> str:
        content = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.address + path, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()
