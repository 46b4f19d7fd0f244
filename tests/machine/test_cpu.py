"""What tells processors apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgvit_edge.machine.cpu import cpu_name, instructions


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


def arm(part: str, maker: str = "0x41") -> str:
    """A core as Linux tells of it on aarch64: it has no name there."""
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid"
    lines = ["processor\t: 0", "BogoMIPS\t: 62.50", f"Features\t: {features}"]
    lines += [f"CPU implementer\t: {maker}", "CPU architecture: 8", "CPU variant\t: 0x0"]
    return "\n".join([*lines, f"CPU part\t: {part}", "CPU revision\t: 1"]) + "\n\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nmodel\t: 17\n", "AMD EPYC"),
        (arm("0xd0c") * 2, "Arm Neoverse-N1"),
        (arm("0xd05") * 4 + arm("0xd0b") * 4, "Arm Cortex-A55 and Arm Cortex-A76"),
        (arm("0x022", "0x61"), "Arm core 0x022 of maker 0x61"),
        (
            arm("0xd0b") + "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
            "Raspberry Pi 5 Model B Rev 1.0",
        ),
        ("model name\t: ARMv8 Processor rev 1 (v8l)\n" + arm("0xd42"), "Arm Cortex-A78AE"),
    ],
)
def test_processors_have_names(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(text)
    assert cpu_name(tmp_path) == name
    assert instructions(tmp_path) == (("asimdhp",) if "Features" in text else ())
    assert cpu_name(tmp_path / "nowhere")
