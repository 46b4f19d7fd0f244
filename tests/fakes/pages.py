"""What tests of self-contained pages share: their elements, and what a browser makes of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


class Seen(HTMLParser):
    """Elements with their attributes, and the text outside styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# In a browser: what lies outside its picture, what lies over what, what is wider than the screen.
PROBE = """<!doctype html><body style="margin:0"><iframe id="f" src="report.html"
style="border:0;width:WIDTHpx;height:3000px"></iframe><script>
f.onload = () => {
  const doc = f.contentDocument;
  const out = {overflow: [], clipped: [], overlaps: [], pictures: 0, texts: 0};
  const wide = doc.documentElement.clientWidth;
  out.page = [doc.documentElement.scrollWidth, wide];
  for (const e of doc.querySelectorAll('main *'))
    if (!e.closest('.scroll, svg') && e.getBoundingClientRect().right > wide + 1)
      out.overflow.push(e.tagName + ' ' + e.className);
  for (const svg of doc.querySelectorAll('svg')) {
    const box = svg.getBoundingClientRect();
    if (!box.width) continue;
    out.pictures += 1;
    const texts = [...svg.querySelectorAll('g[id*="text_"]')].map(g => g.getBoundingClientRect());
    out.texts += texts.length;
    for (const [i, t] of texts.entries()) {
      if (t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 1 ||
          t.bottom > box.bottom + 1) out.clipped.push(i);
      for (const u of texts.slice(i + 1))
        if (t.left < u.right - 1 && u.left < t.right - 1 && t.top < u.bottom - 1 &&
            u.top < t.bottom - 1) out.overlaps.push([t.left, t.top, u.left, u.top]);
    }
  }
  out.background = getComputedStyle(doc.body).backgroundColor;
  const pre = document.createElement('pre');
  pre.id = 'probe'; pre.textContent = JSON.stringify(out); document.body.append(pre);
};
</script>"""


def in_browser(page: Path, folder: Path, width: int, scheme: str) -> dict[str, Any]:
    """What a browser of this width makes of the page; ``scheme`` is ``light`` or ``dark``.

    Skips where there is no browser. The page's background is checked, and that it says no error.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium or google-chrome to look at the page")
    shutil.copy(page, folder / "report.html")
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    done = subprocess.run(
        [
            browser,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--allow-file-access-from-files", "--enable-logging=stderr", "--dump-dom"),
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},3000",
            "--virtual-time-budget=5000",
            (folder / "probe.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    probe = json.loads(re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout)[0])
    assert "CONSOLE" not in done.stderr, done.stderr
    assert probe["background"] == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    return dict(probe)
