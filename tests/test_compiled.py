"""`compile` in a predict stage: the same predictions by torch.compile, and nothing left behind.

The program is a process of its own, for users run without the checks of shapes. Its graphs are captured as always and
then run operation by operation, for a compiler needs minutes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from helpers import ROOT, Answer, Fourd, shell_environment
from toy_fourd import LinearHead, Patches

from fourd_core import compiled
from fourd_core.data import Grid, TokenMap
from fourd_core.errors import RecipeError, RunError
from fourd_core.jobs.stopping import stop_signals
from fourd_core.system import System

RECIPE = f"""
extends = "{ROOT.as_posix()}/recipes/l4p_tiny.toml"
remove = ["weights", "stages", "heads.depth", "heads.flow", "heads.motion", "heads.track", "memories.track"]
device = "cpu"

[backbone]
size = {{ embed_dim = 16, depth = 2, heads = 2, patch = [2, 8, 8], mlp_ratio = 2 }}

[heads.flow]
use = "flow3d"
taps = [0, 1, 1, 2]
features = 4
last = 4
layer_dims = [4, 4, 4, 4]
reassemble = [[2, 2, 2], [2, 1, 1], [1, 1, 1], [0.5, 0.5, 0.5]]
coarse = 2

[heads.cameras]
depth = "none"
taps = [0, 1, 1, 2]
features = 4
last = 4
layer_dims = [4, 4, 4, 4]
ray_grid = 4

[data]
video = "clip.mp4"
pixels = 32

[stages.predict]
job = "predict"
window = 8
stride = 4
precision = "float32"
pixels = "view"
movie = false
pictures = 0
"""

PROGRAM = """
import sys
import time
import torch
from torch._dynamo.backends.debugging import aot_eager
from fourd_core import compiled
from fourd_core.cli import main

def backend(graph, inputs):
    sys.stderr.write(f"compiled {sum(node.op == 'call_function' for node in graph.graph.nodes)} calls\\n")
    return aot_eager(graph, inputs)

compiled.BACKEND = backend
torch.set_num_threads(1)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def recipe(tmp_path: Path, clip: Path) -> Path:
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path / "small.toml"


def run(*words: object) -> Answer:
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, env=shell_environment(), capture_output=True, text=True, timeout=300)
    return Answer(done.returncode, done.stdout, done.stderr)


def test_the_numbers_are_the_same(recipe: Path, fourd: Fourd) -> None:
    fourd("run", recipe, "--out", "plain", check=0)
    answer = run("run", recipe, "--out", recipe.parent / "compiled", "--set", "stages.predict.compile=default")
    assert answer.returncode == 0, answer.stderr
    # Backbone and two decoders, each once; the last window's flow, of which all frames are wanted, as it is.
    assert answer.stderr.count("compiled") == 3
    plain, ours = (
        zarr.open_group(recipe.parent / name / "predict/clip.zarr", mode="r") for name in ("plain", "compiled")
    )
    names = sorted(name for name, _ in plain.arrays())
    assert names == sorted(name for name, _ in ours.arrays()) and len(names) >= 3
    for name in names:
        expected, found = np.asarray(plain[name]), np.asarray(ours[name])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(expected)), err_msg=name)


def test_what_cannot_be_compiled_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise OSError("no C++ compiler")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    forward = compiled._Forward("heads.depth", torch.nn.Linear(2, 2).forward, "default")
    x = torch.ones(1, 2)
    forward(x)  # as it is
    sentence = (
        r'compile = "default": torch.compile fails at \[heads.depth\] \(.*no C\+\+ compiler\); set compile = "no"$'
    )
    with pytest.raises(RunError, match=sentence):
        forward(x)


def test_what_comes_again_is_compiled_and_modules_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []
    buffers: dict[torch.Size, torch.Tensor] = {}

    def replayed(graph: torch.fx.GraphModule, inputs: object, mode: str) -> Callable[..., list[torch.Tensor]]:
        """As CUDA graphs do, write every answer over the last one."""
        graphs.append(graph)

        def replay(*inputs: torch.Tensor) -> list[torch.Tensor]:
            (answer,) = graph(*inputs)
            return [buffers.setdefault(answer.shape, torch.empty_like(answer)).copy_(answer)]

        return replay

    monkeypatch.setattr(compiled, "BACKEND", replayed)
    backbone = Patches(Patches.Config())
    heads = {name: LinearHead(LinearHead.Config(), backbone.spec) for name in ("value", "track")}
    heads["track"].tracks = True
    system = System(backbone, heads)
    names, linear = list(system.state_dict()), heads["value"].linear
    inputs = [torch.full((1, size, 3), float(number)) for number, size in enumerate((4, 4, 5, 4))]
    with torch.inference_mode():
        expected = [linear(x) for x in inputs]
        for how, counted in (("no", 0), ("graphs", 1)):
            with compiled.compiled(system, how):
                answers = [linear(x) for x in inputs]
                assert list(system.state_dict()) == names
                assert ("forward" in vars(linear)) == (how != "no")
                assert "forward" not in vars(heads["track"].linear)
            assert len(graphs) == counted  # not for the first of a form, nor for the only one
            torch.testing.assert_close(answers, expected)
            assert "forward" not in vars(linear)


def test_graphs_refuse_answers_that_cannot_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    forward = compiled._Forward("heads.depth", lambda x: {x}, "graphs")
    x = torch.ones(1)
    assert forward(x) == {x}
    with pytest.raises(
        RunError, match=r'"graphs": \[heads.depth\] answers with a set, whose .*; set compile = "default"'
    ):
        forward(x)


def test_a_record_among_the_inputs_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin's module may take any: records, sets."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    forward = compiled._Forward("heads.depth", lambda token_map, taps: token_map.values + len(taps), "default")
    kept = []
    for number in range(3):
        values = torch.full((1, 4, 3), float(number))
        kept.append(weakref.ref(values))
        assert torch.equal(forward(TokenMap(values, Grid(1, 2, 2)), {1, 2}), values + 2)
        del values
    assert [alive() for alive in kept] == [None] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["check", "run"])
def test_graphs_need_cuda(recipe: Path, fourd: Fourd, command: str) -> None:
    answer = fourd(command, recipe, "--set", "stages.predict.compile=graphs", check=2)
    assert (
        'compile = "graphs" replays CUDA graphs, and this runs on cpu; set compile = "default" or "no"' in answer.stderr
    )


def test_ctrl_c_does_not_wait_for_the_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless(graph: torch.fx.GraphModule, inputs: object, **_: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        raise AssertionError("still here")

    monkeypatch.setattr(compiled, "BACKEND", endless)
    backbone = Patches(Patches.Config())
    system = System(backbone, {"value": LinearHead(LinearHead.Config(), backbone.spec)})
    linear, x = system.heads["value"].linear, torch.zeros(1, 4, 3)
    before = signal.getsignal(signal.SIGINT)
    with compiled.compiled(system, "default"), stop_signals() as stop:
        linear(x)
        with pytest.raises(KeyboardInterrupt):
            linear(x)
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()  # between windows it is as it was
    assert signal.getsignal(signal.SIGINT) == before
    assert capsys.readouterr().err.count("note: compiling the networks") == 1


def test_no_compiler_is_found_out_by_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    compiled.check_compile("no", torch.device("cpu"), "predict")
    with pytest.raises(RecipeError, match=r'\[stages.predict\] compile = "default" needs a C\+\+ compiler, .* "no"'):
        compiled.check_compile("default", torch.device("cpu"), "predict")
