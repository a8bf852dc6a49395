"""Import this before diffusers: it hides a torchvision that the installed torch cannot load.

With such a pair `import torchvision` raises "operator torchvision::nms does not exist", and so does diffusers, through
transformers, which needs torchvision for nothing here. Hidden, it counts as not installed; what does need it (FID)
says which two packages to align.
"""

import sys

reason: str | None = None
try:
    import torchvision  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torchvision":
        reason = str(error)
except Exception as error:  # RuntimeError, OSError, ImportError or AttributeError, by how far the two are apart
    reason = str(error)
if reason is not None:
    sys.modules["torchvision"] = None
