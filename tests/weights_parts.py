"""For the tests of weights: a plugin that knows a checkpoint, official key names in miniature, a server with faults."""

from __future__ import annotations

import importlib
import io
import itertools
import re
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from fourd_core import registry

_numbers = itertools.count()

ONLY_FAKES = ",".join(
    ["acme", "fourd-plugin-acme"]
    + [f"acme-{name}" for name in (
        "weights", "one", "two", "good", "raises", "leaves", "path", "other", "named", "new", "free", "broken", "mae",
        "l4p", "bad", "more",
    )]
)  # fmt: skip
"""For `FOURD_PLUGINS`: the distributions that the tests lay out, and none that is installed here."""

CONVERTER = '''
def convert(state):
    """Without the common prefix, and without the names that are there twice."""
    own = {key.removeprefix("l4p_model."): value for key, value in state.items()}
    return {key: value for key, value in own.items() if ".layer_rn." not in key}
'''


def install_asset(site: Path, distribution: str = "acme-weights", code: str = CONVERTER, **fields: Any) -> str:
    """Lay a distribution with one asset into `site`; returns the name of its module.

    Args:
        code: what else stands in the plugin's module; a text that raises breaks it.
        fields: of the WeightsAsset; those that are missing are made up.
    """
    module = f"weights_plugin_{next(_numbers)}"
    fields = {
        "name": "tiny", "summary": "a tiny network", "licence": "Apache-2.0", "source": "https://example.org/paper",
        "file_name": "tiny.ckpt", **fields,
    }  # fmt: skip
    site.mkdir(parents=True, exist_ok=True)
    text = f"from fourd_core.weights.assets import WeightsAsset\nASSET = WeightsAsset(**{fields!r})\n"
    (site / f"{module}.py").write_text(text.replace("__MODULE__", module) + code)
    info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\nSummary: acme\n")
    points = f"[fourd.weights]\n{fields['name']} = {module}:ASSET\n[fourd.plugin]\napi.1 = {module}\n"
    (info / "entry_points.txt").write_text(points)
    registry._distributions.cache_clear()
    importlib.invalidate_caches()  # two folders may change within one tick of the clock
    return module


def l4p_state() -> dict[str, Tensor]:
    """A few of L4P's official names, in miniature; one tensor stands under two names, as it does there."""
    make = torch.Generator().manual_seed(0)
    shapes = {
        "video_encoder.patch_embed.proj.weight": (8, 3, 2, 4, 4),
        "video_encoder.patch_embed.proj.bias": (8,),
        "video_encoder.blocks.0.attn.q_bias": (8,),
        "video_encoder.blocks.0.attn.qkv.weight": (24, 8),
        "video_encoder.blocks.1.attn.q_bias": (8,),
        "video_encoder.blocks.1.attn.qkv.weight": (24, 8),
        "video_encoder.norm.weight": (8,),
        "task_heads.depth.task_head.dpt.scratch.layer1_rn.weight": (16, 8, 3, 3, 3),
        "task_heads.track_2d.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (3, 4),
        "task_heads.track_2d.mask_decoder.mask_tokens.weight": (3, 8),
    }
    state = {f"l4p_model.{key}": torch.randn(shape, generator=make) for key, shape in shapes.items()}
    dpt = "l4p_model.task_heads.depth.task_head.dpt.scratch"
    state[f"{dpt}.layer_rn.0.weight"] = state[f"{dpt}.layer1_rn.weight"]
    return state


def save_lightning(path: Path, state: Mapping[str, Tensor], **entries: Any) -> bytes:
    """Write a checkpoint as Lightning does; returns the file's bytes."""
    content = {
        "epoch": 3, "global_step": 1200, "pytorch-lightning_version": "2.1.0", "state_dict": dict(state),
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {}, "lr_schedulers": [{"last_epoch": 3}],
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": {"lr": 1e-4, "betas": (0.9, 0.95)}, **entries,
    }  # fmt: skip
    buffer = io.BytesIO()  # into a path torch would also write the path's name
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


@attrs.define
class Fault:
    """What happens to one answer of the server."""

    status: int = 0
    """This error instead of an answer."""
    cut: int | None = None
    """Only so many bytes of the body, then the connection is closed."""
    hang: bool = False
    """After `cut` bytes: stay silent until the server is closed."""


class FileServer:
    """Serves bytes from this machine, with ranges and If-Range as RFC 9110 has them, or with the named faults.

    Attributes:
        files: what is served, by path.
        faults: of the next answers, the first for the next one; none: all is well.
        requests: the headers of every request so far.
        ranges, tags, sizes: whether it knows ranges, sends an ETag, tells the length.
        obeys_if_range: whether it answers with the whole file when that has changed.
    """

    def __init__(self, **files: bytes) -> None:
        self.files = {f"/{name.replace('__', '.')}": data for name, data in files.items()}
        self.faults: list[Fault] = []
        self.requests: list[dict[str, str]] = []
        self.ranges = self.tags = self.sizes = self.obeys_if_range = True
        self.closing = threading.Event()

    def __enter__(self) -> FileServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        self.requests.append(dict(request.headers.items()))
        fault = self.faults.pop(0) if self.faults else Fault()
        if fault.status or request.path not in self.files:
            request.send_error(fault.status or 404)
            return
        data = self.files[request.path]
        tag = f'"{hash(data)}"'
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        same = request.headers.get("If-Range", tag) == tag or not self.obeys_if_range
        start = int(asked[1]) if asked and self.ranges and same else 0
        if start and start >= len(data):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.sizes:
            request.send_header("Content-Length", str(len(data) - start))
        if self.tags:
            request.send_header("ETag", tag)
        request.end_headers()
        request.wfile.write(data[start:][: fault.cut])
        request.wfile.flush()
        if fault.hang:
            self.closing.wait(60)

    @property
    def asked_ranges(self) -> Sequence[str]:
        """The Range of every request, "" where there was none."""
        return [headers.get("Range", "") for headers in self.requests]
