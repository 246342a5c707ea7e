"""Trained weights into the distribution fourd-weights-tiny: python -m benchmarks.publish NAME RUN_OR_FILE ["HOW"]

Heads, memories and, where it was trained, the backbone, in half precision; what objectives own stays behind. HOW is a
sentence that says what they were trained on, kept in the file. The file must stay below 16 MiB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from fourd_core.checkpoint import MODEL, save_tensors
from fourd_core.jobs.train import CHECKPOINT_FILE
from fourd_core.recipe import load_recipe
from fourd_core.run_folder import trained_weights
from fourd_core.weights import read_state_dict

FOLDER = Path(__file__).parents[1] / "plugins/weights_tiny/fourd_weights_tiny"
LARGEST = 16 * 2**20


def publish(name: str, source: Path, how: str) -> Path:
    """Write `NAME.safetensors` from a run folder's last trained weights or checkpoint, or from a file."""
    state = read_state_dict(str(_file(source)))
    if any(key.startswith(MODEL) for key in state):  # the checkpoint of a training that goes on
        state = {key.removeprefix(MODEL): value for key, value in state.items() if key.startswith(MODEL)}
    kept = {
        key: value.half() if value.is_floating_point() else value
        for key, value in state.items()
        if key.startswith(("backbone.", "heads.", "memories."))
    }
    wrong = [key for key, value in kept.items() if not torch.isfinite(value).all()]
    if wrong:
        sys.exit(f"{wrong[0]} does not fit into half precision")
    path = FOLDER / f"{name}.safetensors"
    save_tensors(path, kept, {"fourd": json.dumps({"recipe": name, "how": how, "licence": "Apache-2.0"})})
    size = path.stat().st_size
    if size > LARGEST:
        sys.exit(f"{path} has {size} bytes, more than {LARGEST}")
    sys.stdout.write(f"{path}: {len(kept)} tensors, {size / 2**20:.2f} MiB\n")
    return path


def _file(source: Path) -> Path:
    if not source.is_dir():
        return source
    trained = trained_weights(source, load_recipe(source / "recipe.toml"))
    unfinished = sorted(source.glob(f"*/{CHECKPOINT_FILE}"), key=lambda path: path.stat().st_mtime)
    if trained is None and not unfinished:
        sys.exit(f"{source} has no trained weights")
    return trained or unfinished[-1]


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    publish(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) == 4 else "")
