"""Sources: where pictures come from. Importing any of them registers the kinds there are."""

import lgvit_edge.camera.sources.kinds  # noqa: F401 - registers them
