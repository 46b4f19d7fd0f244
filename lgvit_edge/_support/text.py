"""Text that strangers wrote: file names, class names, what files say of themselves."""

from __future__ import annotations

import re
import sys

# What steers a terminal, but for tabs and new lines; what turns the reading direction, and so
# shows a name as another; and what stands for bytes that are not UTF-8.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""Return text with what is unsafe to show written as in Python: ``\x1b``."""
    return _UNSAFE.sub(lambda found: repr(found[0])[1:-1], text)


def tell(text: str) -> None:
    """Say on standard error what a library makes its user wait for, or should not leave unsaid."""
    print(escaped(text), file=sys.stderr, flush=True)
