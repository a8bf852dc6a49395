"""Numbers in words."""


def counted(count: int, what: str) -> str:
    """Return "1 image" or "1,234 images" for "image", and "2 images of a kind" for "image of a kind"."""
    noun, *rest = what.split(" ", 1)
    return " ".join([f"{count:,}", noun if count == 1 else f"{noun}s", *rest])


def in_words(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
