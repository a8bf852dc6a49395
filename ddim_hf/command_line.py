"""How every example script ends: quietly, or with one line that says what was wrong."""

import sys
import traceback
from collections.abc import Callable


def run(main: Callable[[], None]):
    """Call `main` and exit; wrong input gives one line on stderr and exit code 2, `--traceback` the traceback too.

    An error's notes, what to do about it, follow it.
    """
    show = "--traceback" in sys.argv
    if show:
        sys.argv.remove("--traceback")
    try:
        main()
    except KeyboardInterrupt as stop:
        print(*getattr(stop, "__notes__", []), sep="\n", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        if show:
            traceback.print_exc()
        print("error: " + "; ".join([" ".join(str(error).split()), *getattr(error, "__notes__", [])]), file=sys.stderr)
        sys.exit(2)
