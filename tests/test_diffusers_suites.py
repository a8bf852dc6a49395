"""diffusers' own tests pass whole on our classes, where the environment says where its sources are.

DIFFUSERS_SOURCE names one checkout of diffusers, or several with ':' between them. Its tests need the packages
parameterized and requests-mock, and torchsde for a scheduler that samples with it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = [path for path in os.environ.get("DIFFUSERS_SOURCE", "").split(os.pathsep) if path]


@pytest.mark.skipif(not SOURCES, reason="DIFFUSERS_SOURCE names no checkout of diffusers")
@pytest.mark.parametrize("library", ["installed", "source"])
@pytest.mark.parametrize("source", SOURCES)
def test_diffusers_own_tests_pass(source, library, capsys):
    """Every test of diffusers' for a class that ours replaces passes on ours, with the installed diffusers and with
    the checkout's own."""
    checkout = Path(source).resolve()
    paths = [checkout, HERE.parent, *sys.path]
    if library == "source":
        paths.insert(0, checkout / "src")
    python = dict(
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}, cwd=checkout, capture_output=True, text=True
    )
    version = "import diffusers; print(diffusers.__version__)"
    version = subprocess.run([sys.executable, "-c", version], **python, check=True).stdout.strip()
    command = ["-m", "pytest", HERE / "diffusers_suites.py", "-v", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, *command], **python)
    with capsys.disabled():
        ran = re.findall(r"::(.* (?:PASSED|FAILED|ERROR|SKIPPED.*)) ", done.stdout)
        print(f"\ntests of {checkout} on our classes, with diffusers {version}:", *ran, sep="\n  ")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
