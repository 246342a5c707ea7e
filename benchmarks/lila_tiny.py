"""Does in-context learning learn? python -m benchmarks.lila_tiny

Runs `recipes/ablations/lila_tiny_erm.toml` and `recipes/lila_tiny.toml` (train and evaluate) on the bundled clip, one
table with both; writes benchmarks/results/lila_tiny.json, the table in README.md, and the ERM run's result, which the
tiny recipe shows beside its own. About ten minutes on two cores.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from benchmarks.saving import readme_table, save
from fourd_core.cli import main as fourd

RECIPES = Path(__file__).parent.parent / "recipes"
STAGES = ("train", "evaluate")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        erm, icl = Path(folder) / "erm", Path(folder) / "icl"
        run(RECIPES / "ablations/lila_tiny_erm.toml", erm)
        shutil.copy(erm / "evaluate/result.json", RECIPES / "ablations/lila_tiny_erm.json")
        run(RECIPES / "lila_tiny.toml", icl)
        (table,) = json.loads((icl / "evaluate/result.json").read_text())
    save("lila_tiny", table["rows"], "python -m benchmarks.lila_tiny")
    readme_table("lila_tiny", table["rows"])


def run(recipe: Path, out: Path) -> None:
    """Train and evaluate; stops where the command does."""
    code = fourd(["run", str(recipe), *STAGES, "--out", str(out)])
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
