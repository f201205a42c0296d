"""How a command's folder says that it is at work, and how that ended."""

import contextlib
import os
from collections.abc import Iterator

from bayesarch.engine import Interrupted
from bayesarch.errors import BayesarchError, RunError
from bayesarch.runs import RunFolder, now

__all__ = ["outcome"]


@contextlib.contextmanager
def outcome(folder: RunFolder, stage: str, doing: str) -> Iterator[None]:
    """Run a block whose outcome the folder's status and log tell: running, then interrupted, failed or finished.

    Args:
        folder: the run folder.
        stage: what its status calls the work.
        doing: what its log says of it.
    """
    folder.write_status(state="running", stage=stage, pid=os.getpid())
    folder.log([f"{now()} {doing}"])
    try:
        yield
    except Interrupted:
        folder.write_status(state="interrupted", stage=stage)
        folder.log([f"{now()} interrupted; bayesarch resume {folder.path}"])
        raise
    except BayesarchError as error:
        with contextlib.suppress(RunError):  # a full disk takes no word of it either
            folder.write_status(state="failed", stage=stage, error=str(error))
            folder.log([f"{now()} failed: {error}"])
        raise
    folder.write_status(state="finished", stage="done")
    folder.log([f"{now()} finished"])
