"""Records of what was measured: a row at a time, with machine, versions and commit."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["measure", "typed"]


def typed() -> str:
    """Return the command that this process was started by."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def measure(
    rows: Mapping[str, Callable[[], dict[str, Any]]], wanted: list[str], out: Path, device: str = "cpu"
) -> None:
    """Measure the rows wanted, and write the record after each; rows that are there and not wanted stay."""
    command = typed()
    import torch

    from bayesarch.workflows.environment import environment

    known = json.loads(out.read_text())["rows"] if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    here = environment(torch.device(device))  # before anything is written: a record that grows is no change of the code
    for name in wanted:
        known[name] = {**rows[name](), "threads": torch.get_num_threads(), "commit": here["commit"]}
        print(name, json.dumps(known[name])[:400], flush=True)
        part = out.with_suffix(".part")
        part.write_text(
            json.dumps({"command": command, "environment": here, "rows": known}, indent=1, sort_keys=True) + "\n"
        )
        part.replace(out)
