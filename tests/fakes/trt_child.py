"""What ``python -c`` is to ``apart``: the process that compiles, on the stand-in of the cases."""

from __future__ import annotations

import importlib
import json
import os
import sys

import trt_standin

from lgvit_edge.export.tensorrt import apart

sys.path.insert(0, os.environ.get("TRT_FOLDER", ""))
standin = trt_standin.install(
    importlib.import_module(os.environ["TRT_BINDINGS"]),
    os.environ["TRT_MODULE"],
    os.environ["TRT_VERSION"],
)
for name, value in json.loads(os.environ["TRT_ATTRIBUTES"]).items():
    setattr(standin, name, value)
apart._main()
