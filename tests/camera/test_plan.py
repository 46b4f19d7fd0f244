"""Options and camera.toml become a plan; what cannot be is refused with the place it was said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lgvit_edge import Session, UsageError
from lgvit_edge.camera.plan import Plan, make_plan, parse_address, parse_sources
from lgvit_edge.camera.settings import Region
from lgvit_edge.cli.app import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "frames"
    place.mkdir()
    Image.new("RGB", (64, 48)).save(place / "0.png")
    return place


def plan_of(
    cameras: dict[str, dict[str, Any]] | None = None, typed: tuple[str, ...] = (), **values: Any
) -> Plan:
    def where(key: str) -> str:
        return f"--{key.replace('_', '-')}"

    def open_session(plan: Plan) -> Session:
        return Session.open(plan.engines)

    return make_plan(
        {"engines": Path("out"), **values},
        cameras or {},
        where,
        lambda camera, key: f"camera.toml, line 3, {camera}.{key}",
        open_session=open_session,
        typed=typed,
    )


def test_a_camera_takes_what_is_said_for_all_unless_it_says_otherwise(folder: Path) -> None:
    plan = plan_of(
        {"gate": {"source": str(folder), "every": 2}, "yard": {"source": str(folder)}},
        every=5,
        unsure_below=0.5,
    )
    assert (plan.cameras["gate"].every, plan.cameras["yard"].every) == (2, 5)
    assert plan.cameras["gate"].unsure_below == 0.5


def test_what_is_typed_goes_before_a_cameras_own_table(folder: Path) -> None:
    table = {"source": str(folder), "every": 2, "roi": {"door": "1,2,3,4"}}
    tables = {"gate": dict(table), "yard": dict(table)}
    typed = {"every": 5, "roi": ["gate:sky=5,6,7,8"], "source": ["yard=0"]}
    plan = plan_of(tables, tuple(typed), **typed)
    assert [camera.every for camera in plan.cameras.values()] == [5, 5]
    assert plan.cameras["gate"].regions == {"sky": Region(5, 6, 7, 8)}
    assert plan.cameras["yard"].regions == {"door": Region(1, 2, 3, 4)}
    assert [camera.address for camera in plan.cameras.values()] == [str(folder), "0"]


def test_other_names_of_the_page() -> None:
    plan = plan_of(source=["0"], page="", page_name=["edge.example"])
    assert plan.page_names == ("edge.example",)
    with pytest.raises(UsageError, match="--page-name: there is no page; give --page"):
        plan_of(source=["0"], page_name=["edge.example"])


def test_sources_are_named() -> None:
    assert parse_sources(["0"]) == {"camera": "0"}
    assert parse_sources(["0", "gate=rtsp://host/a?b=c"]) == {
        "camera1": "0",
        "gate": "rtsp://host/a?b=c",
    }
    # The = of an address or a pipeline is no name's.
    address, pipeline = "http://host/?x=1", "videotestsrc pattern=ball ! videoconvert"
    assert list(parse_sources([address, pipeline]).values()) == [address, pipeline]


def test_regions_are_of_one_camera_or_of_all(folder: Path) -> None:
    cameras = {name: {"source": str(folder)} for name in ("gate", "yard")}
    plan = plan_of(cameras, roi=["gate:door=0,0,10,10", "sky=0%,0%,100%,50%"])
    assert list(plan.cameras["gate"].regions) == ["door", "sky"]
    assert plan.cameras["yard"].regions == {"sky": Region(0, 0, 1, 0.5, share=True)}
    own = plan_of({"gate": {"source": str(folder), "roi": {"door": "1,2,3,4"}}})
    assert own.cameras["gate"].regions == {"door": Region(1, 2, 3, 4)}
    listed = plan_of({"gate": {"source": str(folder), "roi": ["door=1,2,3,4"]}})
    assert listed.cameras["gate"].regions == own.cameras["gate"].regions


@pytest.mark.parametrize(
    "cameras, values, text",
    [
        ({}, {}, "no camera was given; add --source 0"),
        ({"gate": {}}, {}, "camera gate has no source"),
        ({"gate": {"source": "0", "every": 0}}, {}, "camera.toml, line 3, gate.every: every must"),
        ({"gate": {"source": "0"}}, {"every": 0}, "--every: every must be a whole number"),
        ({"gate": {"source": "ftp://x"}}, {}, "camera.toml, line 3, gate.source: "),
        ({}, {"source": ["nowhere.mp4"]}, "--source: .*nowhere.mp4"),
        ({}, {"source": ["a=0", "a=1"]}, "two cameras are called a"),
        ({}, {"source": ["a="]}, "expected a source behind the name"),
        ({}, {"source": ["0"], "roi": ["door"]}, "--roi: expected NAME=X,Y,W,H"),
        ({}, {"source": ["0"], "roi": ["yard:door=1,1,1,1"]}, "--roi: there is no camera 'yard'"),
        ({}, {"source": ["0"], "roi": ["d=1,1,1,1", "d=1,1,1,1"]}, "two regions of camera are"),
        ({}, {"source": ["0"], "fps": 9.0, "point": "fast"}, "--point and --fps both decide"),
        ({}, {"source": ["0"], "fps": 0.0}, "--fps: expected a number above 0, found 0.0"),
        ({}, {"source": ["0"], "page": "host:port"}, "--page: expected HOST:PORT such as"),
        ({}, {"source": ["0"], "keep_mb": 5}, "--keep-mb: nothing uses it; give --keep-unsure"),
        ({}, {"source": ["0"], "cafile": "x"}, "give --mqtt or --webhook as well"),
        ({}, {"source": ["0"], "smooth": "mean:3"}, "--smooth: smooth: a smoothing must be"),
    ],
)
def test_what_cannot_be_is_refused(
    cameras: dict[str, Any], values: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        plan_of(cameras, **values)


def test_no_bundle(folder: Path) -> None:
    with pytest.raises(UsageError, match="no bundle was given; add --engines"):
        plan_of({"gate": {"source": str(folder)}}, engines=None)


@pytest.mark.parametrize(
    "text, address",
    [
        ("", ("127.0.0.1", 8765)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        (":9000", ("127.0.0.1", 9000)),
        ("edge.local", ("edge.local", 8765)),
        ("[::1]:9000", ("::1", 9000)),
        ("[::1]", ("::1", 8765)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, "--page") == address


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lgvit-edge", "camera", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_a_file_of_options_names_the_line_of_a_mistake(
    tmp_path: Path,
    folder: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "camera.toml"
    lines = [f'engines = "{bundle}"', "[camera.gate]", f'source = "{folder}"', "every = 0"]
    file.write_text("\n".join(lines))
    assert run(monkeypatch, "--config", str(file)) == 2
    said = capsys.readouterr().err
    assert f"{file}, line 4, camera.gate.every: every must be a whole number" in said
    file.write_text("fsp = 3\n")
    assert run(monkeypatch, "--config", str(file)) == 2
    assert "line 1, fsp: unknown option; did you mean fps?" in capsys.readouterr().err


def test_every_option_may_stand_in_the_file_and_typed_ones_come_first(
    tmp_path: Path,
    folder: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "camera.toml"
    file.write_text(
        f'engines = "{bundle}"\npolicy = "fixed:1"\nbackend = "onnxruntime"\npace = "fast"\n'
        f'jsonl = "{tmp_path}/from-file.jsonl"\n[camera.gate]\nsource = "{folder}"\n'
    )
    lines = tmp_path / "typed.jsonl"
    assert run(monkeypatch, "--config", str(file), "--jsonl", str(lines), "--quiet") == 0
    assert '"exit": 1' in lines.read_text() and not (tmp_path / "from-file.jsonl").exists()
    lines.unlink()
    assert (
        run(monkeypatch, "--config", str(file), "--policy", "fixed:2", "--jsonl", str(lines)) == 0
    )
    assert '"exit": 2' in lines.read_text()  # in place of what the file says of it
    assert "gate" in capsys.readouterr().out


def test_check_opens_everything_and_names_what_cannot_be_opened(
    tmp_path: Path,
    folder: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--engines", str(bundle), "--source", f"gate={folder}", "--check"]
    assert run(monkeypatch, *options, "--jsonl", str(tmp_path / "a.jsonl"), "--page", ":0") == 0
    said = capsys.readouterr().out
    assert "64 x 48" in said and "at exit" in said and "jsonl: can be opened" in said
    assert run(monkeypatch, *options, "--roi", "door=0,0,99,9") == 1
    assert "gate: the region door must lie within the picture" in capsys.readouterr().err
    dead = ["--source", "yard=http://127.0.0.1:9/x"]
    assert run(monkeypatch, *options, *dead) == 1
    assert "yard: " in capsys.readouterr().err


def test_a_unit_for_systemd(
    folder: Path,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--engines", str(bundle), "--source", str(folder), "--video", str(tmp_path / "v")]
    assert run(monkeypatch, *options, "--systemd") == 0
    said = capsys.readouterr().out
    assert f"camera --engines {bundle} --source {folder}" in said and "--systemd" not in said
    assert f"-{tmp_path / 'v'}" in said
    assert "ExecReload" not in said and "systemctl reload" not in said  # no file to read again


def test_the_demo_wants_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "--demo") == 2
    assert "found none; run: lgvit-edge demo" in capsys.readouterr().err
