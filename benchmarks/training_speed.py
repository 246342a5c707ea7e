"""How fast L4P learns from generated scenes, and who is slower: python -m benchmarks.training_speed [RECIPE] [DEVICE]

For each training stage of a recipe (l4p_tiny): clips per second of the generator alone, of the training step alone
(forward, backward, AdamW), and of both. One thread's processor time on a CPU, so that neighbours matter little; the
clock on a GPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.saving import save
from fourd_core.build import build_dataset, build_system
from fourd_core.jobs.batches import Batches
from fourd_core.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
REPEATS = 4


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of some repetitions, after one to warm up."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found = []
    for _ in range(1 + REPEATS):
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - start)
    return min(found[1:])


def measure(recipe_name: str, stage: str, device: torch.device) -> dict[str, object]:
    """One stage, at its own batch size."""
    recipe = load_recipe(RECIPES / f"{recipe_name}.toml", ["weights=none", f"device={device.type}"])
    config = recipe.stages[stage].config
    system, data = build_system(recipe).to(device), build_dataset(recipe, stage)
    system.learn_backbone(config.learn_blocks)
    system.train()
    objective = system.objectives[stage]
    batches = Batches(objective, data, 0, stage, config.batch_size)  # type: ignore[arg-type]
    numbers = iter(range(10**6))
    learned = [parameter for parameter in system.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5)

    def made() -> dict[str, torch.Tensor]:
        batch = {key: value.to(device) for key, value in batches[next(numbers)].items()}
        return dict(objective.complete(data, batch))

    batch = made()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            losses = objective(system, batch, torch.Generator(device).manual_seed(0))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()

    making, learning, clips = seconds(made, device), seconds(step, device), config.batch_size
    return {
        "recipe": recipe_name, "stage": stage, "device": device.type, "batch": clips,
        "generator, clips/s": round(clips / making, 1), "training step, clips/s": round(clips / learning, 1),
        "both, clips/s": round(clips / (making + learning), 1),
        "generator's share": round(making / (making + learning), 2),
    }  # fmt: skip


def main() -> None:
    """Measure, print, keep."""
    torch.set_num_threads(1)
    name = sys.argv[1] if len(sys.argv) > 1 else "l4p_tiny"
    device = torch.device(sys.argv[2] if len(sys.argv) > 2 else "cpu")
    stages = load_recipe(RECIPES / f"{name}.toml", ["weights=none"]).stages
    rows = [measure(name, stage, device) for stage, section in stages.items() if section.job == "train"]
    command = " ".join(["python -m benchmarks.training_speed", *sys.argv[1:]])
    save(f"training_speed_{name}_{device.type}", rows, command)


if __name__ == "__main__":
    main()
