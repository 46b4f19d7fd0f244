"""What tells processors apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgvit_edge.machine.cpu import instructions


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("flags\t\t: fpu sse4_2 fma avx2 avx512_bf16", ("avx2", "fma", "avx512_bf16")),
        ("flags\t\t: avx2 amx_bf16 amx_tile", ("avx2", "amx_bf16")),
        ("Features\t: fp asimd asimdhp sve bf16 svebf16", ("asimdhp", "sve", "bf16", "svebf16")),
        ("bogomips\t: 5200", ()),
    ],
)
def test_processors_of_one_name_have_other_instructions(
    line: str, found: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"model name\t: A Processor\n{line}\n")
    assert instructions(tmp_path) == found
    assert instructions(tmp_path / "nowhere") == ()
