"""`make bench`: each benchmark runs ours and the peer in this one process and gives rows of their ratio.

A benchmark is a file bench_*.py here with `run()`, which returns rows {name, ours, peer, unit, ratio, floor, goal}.
The rows are printed and written to runs/bench.json; the exit code is 1 where a ratio is below its floor.
"""

import importlib
import json
import sys
from pathlib import Path

COLUMNS = ("name", "ours", "peer", "unit", "ratio", "floor", "goal")


def main() -> int:
    rows = []
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        if len(sys.argv) > 1 and not any(word in path.stem for word in sys.argv[1:]):
            continue
        print(f"{path.stem} …", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"tests.benchmarks.{path.stem}").run()
    out = Path("runs/bench.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=2) + "\n")
    cells = [COLUMNS, *[tuple(str(row[column]) for column in COLUMNS) for row in rows]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(COLUMNS))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)))
    below = [row["name"] for row in rows if row["ratio"] < row["floor"]]
    for name in below:
        print(f"below its floor: {name}", file=sys.stderr)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
