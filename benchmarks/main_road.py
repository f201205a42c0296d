"""The default search on digits over several seeds: epochs, what fired, accuracy, seconds; and what moves the weights.

    python benchmarks/main_road.py --seeds 5 --out benchmarks/results/main_road.json

Each row is a whole `bayesarch search`. The second part changes only the architecture learning rate, to show how the
relative weights of one and the same data set move with it.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import bayesarch as ba


def one(folder: str, seed: int, **settings: object) -> dict:
    """Return what one search found and cost."""
    name = "-".join([str(seed), *(f"{key}={value}" for key, value in settings.items())])
    run = ba.search("digits", seed=seed, out=Path(folder) / name, set=settings)
    summary = run.summary
    return {
        "seed": seed,
        "settings": settings,
        "cell": summary["cell"],
        "fired_by": summary.get("fired_by"),
        "search_epochs": summary["search_epochs"],
        "selection_accuracy": summary["selection_accuracy"],
        "seconds": summary["times"]["seconds"],
        "weights_of_the_cell": [edge["weight"] for edge in summary["edges"]],
        "environment": json.loads((Path(run.path) / "environment.json").read_text()),
    }


def main() -> None:
    """Run the searches and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [one(folder, seed) for seed in range(arguments.seeds)]
        moved = [one(folder, 0, **{"method.alpha_lr": lr}) for lr in (0.01, 0.02, 0.04)]
    environment = rows[0]["environment"]
    for row in (*rows, *moved):
        del row["environment"]
    fired = {cause: sum(row["fired_by"][cause] for row in rows) for cause in ("threshold", "inactive", "cap")}
    accuracies = [row["selection_accuracy"] for row in rows]
    record = {
        "command": f"python benchmarks/main_road.py --seeds {arguments.seeds} --out {arguments.out}",
        "environment": environment,
        "fired_by": fired,
        "selection_accuracy": {"mean": statistics.mean(accuracies), "sd": statistics.stdev(accuracies)},
        "seconds": {"median": statistics.median(row["seconds"] for row in rows)},
        "seeds": rows,
        "learning_rates": moved,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    print(json.dumps({key: record[key] for key in ("fired_by", "selection_accuracy", "seconds")}, indent=2))


if __name__ == "__main__":
    main()
