"""How every example script ends: quietly, or with one line that says what was wrong."""

import sys
import traceback
from collections.abc import Callable


def run(main: Callable[[], None]):
    """Call `main` and exit; wrong input gives one line on stderr and exit code 2, `--traceback` the traceback too."""
    show = "--traceback" in sys.argv
    if show:
        sys.argv.remove("--traceback")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        if show:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
