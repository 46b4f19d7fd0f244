"""A chain whose segments are models of the Triton that it runs in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.bundle.builds import graphs_of
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.errors import BackendError
from lgvit_edge.serving.contract import graph_model


class TritonChain:
    """Runs a ``Chain`` by calling a model for each segment, from inside the Python backend.

    Hidden states come back to the host between segments: where rows leave the batch, the others
    are gathered there.
    """

    def __init__(self, triton: Any, bundle: Bundle, names: Sequence[str], model: str) -> None:
        """Take the graphs of these names; nothing is loaded here.

        ``triton`` is ``triton_python_backend_utils``; ``model`` is the name that the segments'
        names begin with.
        """
        graphs = graphs_of(bundle)
        self._triton, self._graphs = triton, [(graph_model(model, n), graphs[n]) for n in names]
        self.max_batch = bundle.manifest.batch[2]
        self._rows: NDArray[Any] = np.empty(0)  # what the next segment reads
        self._next = 0

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        """See ``Chain.start``."""
        self._rows, self._next = images, segment

    def step(self) -> NDArray[np.float32]:
        """See ``Chain.step``."""
        triton, (model, graph) = self._triton, self._graphs[self._next]
        response = triton.InferenceRequest(
            model_name=model,
            requested_output_names=[output.name for output in graph.outputs],
            inputs=[triton.Tensor(graph.inputs[0].name, self._rows)],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise BackendError(f"the model {model} failed: {response.error().message()}")
        found = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        for output in graph.outputs:
            expected = output.dtype, output.for_batch(len(self._rows))
            if (found[output.name].dtype, found[output.name].shape) != expected:
                raise BackendError(
                    f"the model {model} is another than was written: expected {output.name} "
                    f"{expected}, found {found[output.name].dtype} {found[output.name].shape}"
                )
        if graph.hidden is not None:
            self._rows = found[graph.hidden.name]
        self._next += 1
        logits: NDArray[np.float32] = found[graph.logits.name]
        return logits

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See ``Chain.keep``."""
        if len(rows) < len(self._rows):
            self._rows = self._rows[rows]

    def describe(self) -> dict[str, Any]:
        """See ``Chain.describe``."""
        return {"backend": "triton", "models": [model for model, _ in self._graphs]}

    def close(self) -> None:
        """See ``Chain.close``; the models are Triton's."""
