"""What leaves this machine names none of its folders and holds no token."""

import re
import shlex
from typing import Any

TOKEN = re.compile(r"hf_\w{8,}")
# Where a path begins that is absolute, or starts in a home or a folder further up, in any system's spelling.
LOCAL = r"(?:(?i:file):/+|[A-Za-z][\w+]+:///+)(?:[A-Za-z]:)?[/\\]*"
START = rf"(?:{LOCAL}|~(?:[A-Za-z_][\w-]*)?[/\\]|[A-Za-z]:[/\\]+|\.\.[/\\]|[/\\]+(?=[^\s/\\]))"
# Where a path begins that goes up later on.
UP = r"(?:[\w.-]+[/\\]+)+\.\.[/\\]+"
# The name of a folder may hold spaces, quotes and commas, but no other path begins after them.
FOLDER = rf"(?:(?![\s'\",;:=(](?:{START}|\w\w+://))[^/\\\n])+[/\\]+"
# An address as scheme, user and password, host and path, and query; "::" chains it to another one or to a path.
PLACE = r"(?:(?!::(?:[/~.]|\w+://))[^\s,;?'\"])*"
ADDRESS = rf"\b(?!(?i:file):)(?P<scheme>[A-Za-z][\w+]+://)(?!/)(?:[^\s/'\"]*@)?(?P<place>{PLACE})(?:\?[^\s'\")]+)?"
OUTSIDE = re.compile(rf"{ADDRESS}|(?<![\w./\\~])(?:{START}|{UP})(?:{FOLDER})*(?=[^\s'\"])")
CLASS_NAMES = ("id2label", "label_names", "by_class")
SCRIPT = re.compile(r"(?:.*[/\\])?examples[/\\]((?:\w+[/\\])?\w+\.py)")


def redact(value: Any) -> Any:
    """Text, or what JSON holds, without tokens, and with each path that leads out of the working directory, or goes up
    on its way, cut to its last part. Other paths stay: they name nothing of the machine, and commands need them. So do
    addresses, but for the user, the password and the query, which may hold credentials; and names of classes in JSON,
    which are data, whatever they look like.
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
    return OUTSIDE.sub(lambda found: found["scheme"] + found["place"] if found["scheme"] else "", text)
