"""Lists the kinds of sources, in the order in which an address is tried."""

from __future__ import annotations

from lgvit_edge.camera.sources import gstreamer, opencv, pictures, pyav, scene, stdin
from lgvit_edge.camera.sources.base import register_source

for kind in (
    opencv.USB,
    gstreamer.CSI,
    gstreamer.PIPELINE,
    pyav.RTSP,
    pyav.HTTP,
    stdin.STDIN,
    scene.KIND,
    pictures.PICTURES,
    pyav.FILE,  # last: it takes whatever looks like a path
):
    register_source(kind)
