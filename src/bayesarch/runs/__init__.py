"""What is kept on disk: the run folder. No torch; the only room that writes results."""

from bayesarch.runs.folder import FORMAT as FORMAT
from bayesarch.runs.folder import RunFolder as RunFolder
from bayesarch.runs.folder import free_path as free_path
from bayesarch.runs.folder import now as now
from bayesarch.runs.folder import run_folders_in as run_folders_in
from bayesarch.runs.folder import write_arrays as write_arrays
from bayesarch.runs.folder import write_atomically as write_atomically

__all__ = ["FORMAT", "RunFolder", "free_path", "now", "run_folders_in", "write_arrays", "write_atomically"]
