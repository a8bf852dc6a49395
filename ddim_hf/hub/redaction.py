"""What leaves this machine names none of its folders and holds no token."""

import re
import shlex
from typing import Any

TOKEN = re.compile(r"hf_\w{8,}")
# Where a path begins that is absolute, or starts in a home or a folder further up, in any system's spelling.
START = r"(?:(?i:file):/+(?:[A-Za-z]:)?[/\\]*|~(?:[A-Za-z_][\w-]*)?[/\\]|[A-Za-z]:[/\\]+|\.\.[/\\]|[/\\]+(?=[^\s/\\]))"
# The name of a folder may hold spaces, quotes and commas, but no other path begins after them.
FOLDER = rf"(?:(?![\s'\",;:=(](?:{START}|\w\w+://))[^/\\\n])+[/\\]+"
ADDRESS = r"(?P<address>\b(?!(?i:file):)[A-Za-z][\w+]+://[^\s,;'\"]*)"
OUTSIDE = re.compile(rf"{ADDRESS}|(?<![\w./\\~]){START}(?:{FOLDER})*(?=[^\s'\"])")
CLASS_NAMES = ("id2label", "label_names", "by_class")
SCRIPT = re.compile(r"(?:.*[/\\])?examples[/\\]((?:\w+[/\\])?\w+\.py)")


def redact(value: Any) -> Any:
    """Text, or what JSON holds, without tokens, and with each path that leads out of the working directory cut to its
    last part. Paths below it stay: they name nothing of the machine, and commands need them. Names of classes in JSON
    stay too: they are data, whatever they look like.
    """
    if isinstance(value, dict):
        return {key: part if key in CLASS_NAMES else redact(part) for key, part in value.items()}
    if isinstance(value, list):
        return [redact(part) for part in value]
    if not isinstance(value, str):
        return value
    return _within(TOKEN.sub("$HF_TOKEN", value))


def redact_command(command: str) -> str:
    """A command as it runs in a checkout of ddim_hf; word by word, as a path in it may hold spaces."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command of a shell's
        return redact(command)
    scripts = [SCRIPT.fullmatch(word) for word in words]
    shown = [
        f"examples/{script[1]}".replace("\\", "/") if script else _within(word)
        for word, script in zip(words, scripts, strict=True)
    ]
    return TOKEN.sub("$HF_TOKEN", shlex.join(shown))


def _within(text: str) -> str:
    return OUTSIDE.sub(lambda found: found["address"] or "", text)
