"""Optional packages: what importing them must not do."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import python


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_backend_reports_nothing(backend: str, bundle: Path, tmp_path: Path) -> None:
    """Both would keep a number of this machine in the home folder, and send what they do."""
    pytest.importorskip(backend)
    code = (
        "import os, sys, numpy as np;"
        "[os.environ.pop(name, None) for name in ('CI', 'TF_BUILD', 'JENKINS_URL')];"
        f"os.environ.update(HOME={str(tmp_path)!r}, LGVIT_EDGE_CACHE='');"
        "os.environ.pop('ORT_DISABLE_TELEMETRY', None);"
        "os.environ.pop('XDG_CACHE_HOME', None);"
        "from lgvit_edge.runtime import Session;"
        f"session = Session.open({str(bundle)!r}, backend={backend!r});"
        "session.predict(np.zeros((8, 8, 3), np.uint8)); session.close();"
        "print(os.environ.get('ORT_DISABLE_TELEMETRY'), 'openvino_telemetry' in sys.modules)"
    )
    silent = "1" if backend == "onnxruntime" else None
    assert python(code) == f"{silent} False\n"
    assert list(tmp_path.rglob("*")) == []


def test_who_wants_reports_may_have_them() -> None:
    code = (
        "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '0';"
        "from lgvit_edge._support.optional import require;"
        "require('onnxruntime', extra='cpu'); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    assert python(code) == "0\n"
