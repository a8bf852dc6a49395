"""What the Hub refuses, in one line that says what to do; what it may grant a moment later, asked again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

RETRY_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds
TRANSIENT = (408, 429, 500, 502, 503, 504)
LOG_IN = "run `hf auth login`, set HF_TOKEN, or pass token=..."


def retry(call: Callable, *args, **kwargs):
    """Ask again where the Hub says 429 or 5xx, or a gateway before it answers with a page of its own: the client does
    so for uploads and downloads, not for these calls.
    """
    for wait in (*RETRY_WAITS, None):
        try:
            return call(*args, **kwargs)
        except (HTTPError, OSError, JSONDecodeError) as error:
            response = _response(error)
            status = response.status_code if response is not None else None
            if wait is None or not (status in TRANSIENT or isinstance(error, JSONDecodeError)):
                raise
            asked = response.headers.get("Retry-After", "") if response is not None else ""
            time.sleep(min(max(wait, float(asked) if asked.isdigit() else 0.0), 60.0))


@contextmanager
def one_clear_line(repo_id: str, revision: str | None, *, push: bool = False, local_files_only: bool = False):
    """Turn what huggingface_hub raises, often several lines deep in another error, into one line that helps."""
    try:
        yield
    except HFValidationError as error:
        here = "not a repo id: it must be" if push else "neither a folder here nor a repo id; a repo id is"
        raise ValueError(f"{repo_id!r} is {here} 'user/name' of letters, digits, - _ and .") from error
    except JSONDecodeError as error:
        hub = constants.ENDPOINT
        raise OSError(
            f"{hub} answered with a page that is not its own: nothing was changed; try again later"
        ) from error
    except ValueError as error:  # the Hub's opinion of the card's metadata, with a list of all that it allows
        raise ValueError(" ".join(str(error).split())) from error
    except (HTTPError, OSError, RuntimeError) as error:
        if _response(error) is not None:
            raise _refusal(error, repo_id, revision, push) from error
        raise _no_answer(error, repo_id, push, local_files_only) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException):
    return next((cause.response for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


def _refusal(error: Exception, repo_id: str, revision: str | None, push: bool) -> Exception:
    """What the Hub's answer means for whoever asked."""
    response, hub = _response(error), constants.ENDPOINT
    status, access = response.status_code, "write" if push else "read"

    def is_a(kind: type) -> bool:
        return any(isinstance(cause, kind) for cause in _causes(error))

    if is_a(GatedRepoError):
        return PermissionError(f"{repo_id} is gated: ask for access at {hub}/{repo_id}, then {LOG_IN}")
    if status == 401 and (push or "Invalid credentials" in response.headers.get("X-Error-Message", "")):
        sent = "Authorization" in response.request.headers
        why = "the Hub does not accept this token" if sent else "there is no token"
        return PermissionError(f"{why}: make one with {access} access, then {LOG_IN}")
    if status == 403:
        use = f"make one with write access at {hub}/settings/tokens" if push else "use one that may"
        return PermissionError(f"this token may not {'write to' if push else 'read'} {repo_id}: {use}, then {LOG_IN}")
    if is_a(RevisionNotFoundError):
        return OSError(f"{repo_id} has no branch, tag or commit {revision!r}: see {hub}/{repo_id}/tree/main")
    if status in (401, 404) or is_a(RepositoryNotFoundError):
        where = f"neither a folder here nor a model at {hub}"
        return FileNotFoundError(f"{repo_id} is {where}: check the name; if it is private, {LOG_IN}")
    if status in (409, 412):
        return OSError(f"{repo_id} changed while this push was under way: look at {hub}/{repo_id}, then push again")
    if status == 429:
        return OSError(f"{hub} limits how often it may be asked (HTTP 429): wait some minutes and run this again")
    return OSError(f"{hub} failed on {repo_id} (HTTP {status}): nothing was changed; run this again later")


def _no_answer(error: Exception, repo_id: str, push: bool, local_files_only: bool) -> Exception:
    """Why none came from the Hub: it was not asked, not reached, or the file is cut short."""
    *_, root = causes = list(_causes(error))
    first_line = (str(root).strip() or type(root).__name__).splitlines()[0]
    if local_files_only:
        return FileNotFoundError(
            f"{repo_id} is not in the cache, or not wholly: load it once without local_files_only"
        )
    if "Consistency check failed" in str(error):
        return OSError(f"the download of {repo_id} was truncated: run this again with force_download=True")
    if any(isinstance(cause, (HTTPError, ConnectionError, LocalEntryNotFoundError)) for cause in causes):
        here = "" if push else f"there is no folder {repo_id!r} here, and "
        hub = constants.ENDPOINT
        return ConnectionError(f"{here}no connection to {hub} ({first_line}): check the network and run this again")
    return OSError(first_line) if isinstance(error, RuntimeError) else error
