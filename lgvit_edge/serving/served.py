"""The model that Triton's Python backend runs: it answers requests with one session."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import positive
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.layout import MANIFEST
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import DataError, LGViTEdgeError, UsageError, in_one_line
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.pixels import decode_bytes
from lgvit_edge.machine.cpu import available_cores
from lgvit_edge.policies import Policy, from_json
from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.session import Session
from lgvit_edge.serving.chain import TritonChain
from lgvit_edge.serving.contract import (
    BUNDLE,
    DEADLINE,
    HIDDEN,
    IDENTITY,
    IMAGE,
    INPUTS,
    OUTPUTS,
    POINT,
    POLICY,
    SEGMENT,
    SEGMENTS,
)
from lgvit_edge.serving.metrics import Counters
from lgvit_edge.serving.options import RunParameters

_LONGEST = 10_000  # characters of a policy; 200 exits need half of it


@dataclass(frozen=True)
class _Asked:
    """What one request asks for."""

    images: Inputs | NDArray[np.float16]
    point: str | None
    deadline_ms: float | None
    rest: _Rest | None

    @property
    def hurry(self) -> float:
        return math.inf if self.deadline_ms is None else self.deadline_ms


@dataclass(frozen=True)
class _Rest:
    """What a device leaves to this machine: the chain from a segment on, by its policy."""

    segment: int
    hidden: bool  # whether it begins with hidden states
    policy: str

    @classmethod
    def read(cls, parameters: Mapping[str, Any], manifest: Manifest, hidden: bool) -> _Rest:
        missing = [n for n in (SEGMENT, IDENTITY, POLICY) if parameters.get(n) is None]
        if missing or parameters.keys() & {POINT, DEADLINE}:
            raise UsageError(
                f"a request for the rest of a chain has the parameters {SEGMENT}, {IDENTITY} and "
                f"{POLICY}, and neither {POINT} nor {DEADLINE}; found {', '.join(parameters)}"
            )
        if parameters[IDENTITY] != manifest.identity:
            raise UsageError(
                f"the device has another bundle: expected {manifest.identity[:12]}, found "
                f"{str(parameters[IDENTITY])[:12]}; give both machines the same"
            )
        most = len(manifest.segments) - 1
        segment = parameters[SEGMENT]
        if type(segment) is not int or not hidden <= segment <= most:
            raise UsageError(f"{SEGMENT} must be {int(hidden)}..{most}, found {segment!r:.40}")
        return cls(segment, hidden, str(parameters[POLICY]))


class ServedModel:
    """Answers requests; Triton makes one in the process of each instance."""

    def __init__(self, triton: Any, folder: Path, args: Mapping[str, str]) -> None:
        """Open the session, before Triton calls the model ready.

        Args:
            triton: the module ``triton_python_backend_utils``, which Triton brings.
            folder: where ``model.py`` lies, and beside it the bundle.
            args: what Triton tells the model of itself.

        Raises what ``Session.open`` does; Triton logs it.
        """
        self._triton, self._folder = triton, folder
        config = json.loads(args["model_config"])
        parameters = {name: each["string_value"] for name, each in config["parameters"].items()}
        self._session = self._open(parameters)
        self._session.notes = False  # clients may bring any number of policies
        manifest = self._session.manifest
        self._default = self._session.policy
        # The point that the last request named, or the policy that it brought.
        self._in_use: tuple[str | None, str | None] | None = (None, None)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._counters = Counters(self._triton, manifest.pass_numbers, labels)
        # Decoding and resizing leave Python's lock alone.
        self._readers = ThreadPoolExecutor(available_cores(), "reader")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests that Triton batched, each with its outputs or with an error of its own.

        Images that name the same operating point run together. Those with a deadline run before
        the others, one by one. Latencies and deadlines begin here.
        """
        began = time.perf_counter()
        asked = list(self._readers.map(self._asked, requests))
        answers: dict[int, list[Result] | LGViTEdgeError] = {}
        groups: dict[tuple[Any, ...], list[tuple[int, _Asked]]] = {}
        for place, each in enumerate(asked):
            if isinstance(each, LGViTEdgeError):
                answers[place] = each
            else:
                alone = None if each.deadline_ms is None else place
                groups.setdefault((each.point, each.rest, alone), []).append((place, each))
        for group in sorted(groups.values(), key=lambda group: group[0][1].hurry):
            answers |= self._answers(group, began)
        self._count(answers.values())
        return [self._response(request, answers[i]) for i, request in enumerate(requests)]

    def close(self) -> None:
        """Close the session."""
        self._readers.shutdown()
        self._session.close()

    def _open(self, parameters: Mapping[str, str]) -> Session:
        options, root = RunParameters.read(parameters), self._folder / BUNDLE
        if SEGMENTS not in parameters:
            return Session.open(root, warm_up=True, **options.given)
        # Only the manifest is here, and Triton may load the segments after this model.
        bundle = Bundle(root, Manifest.loads((root / MANIFEST).read_bytes()))
        policy = options.stop_rule(bundle.manifest)
        return Session(
            bundle,
            policy,
            lambda names: TritonChain(self._triton, bundle, names, parameters[SEGMENTS]),
        )

    def _asked(self, request: Any) -> _Asked | LGViTEdgeError:
        try:
            parameters = json.loads(request.parameters() or "{}")
            point, deadline = parameters.get(POINT), parameters.get(DEADLINE)
            if deadline is not None:
                positive(DEADLINE, deadline)
            name, array = self._input(request)
            rest = None
            if name == HIDDEN or SEGMENT in parameters:
                rest = _Rest.read(parameters, self._session.manifest, name == HIDDEN)
                return _Asked(self._begun(name, array, rest), None, None, rest)
            images = self._session.prepare(_frames(name, array), own=False)
            return _Asked(images, point, deadline, None)
        except LGViTEdgeError as error:
            return error

    def _input(self, request: Any) -> tuple[str, NDArray[Any]]:
        """Return name and values of a request's only input."""
        given = [(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()]
        if len(given) != 1:
            found = " and ".join(name for name, _ in given) or "none"
            raise UsageError(f"expected one of the inputs {', '.join(INPUTS)}, found {found}")
        return given[0]

    def _begun(self, name: str, array: NDArray[Any], rest: _Rest) -> Inputs | NDArray[np.float16]:
        """Return what a device sent of images that it began with."""
        manifest = self._session.manifest
        if name != HIDDEN:
            index = manifest.pass_numbers[rest.segment] - 1
            return Inputs.of_crops(_frames(name, array), manifest.views, index)
        shape = self._session.hidden_spec(rest.segment).for_batch(len(array))
        if array.size != math.prod(shape):
            raise DataError(
                f"a hidden state of {math.prod(shape[1:])} values goes into segment "
                f"{rest.segment}, found {array.size // len(array)}"
            )
        return array.reshape(shape)

    def _answers(
        self, group: Sequence[tuple[int, _Asked]], began: float
    ) -> dict[int, list[Result] | LGViTEdgeError]:
        """Run the images of requests together; return what each request gets, by its place."""
        try:
            first = group[0][1]
            self._use(first.point, None if first.rest is None else first.rest.policy)
            results = iter(self._run([each.images for _, each in group], first, began))
        except LGViTEdgeError as error:
            if len(group) == 1:
                return {group[0][0]: error}
            # One request may have spoilt the batch; it alone gets the error.
            alone: dict[int, list[Result] | LGViTEdgeError] = {}
            for each in group:
                alone |= self._answers([each], began)
            return alone
        return {place: list(islice(results, len(each.images))) for place, each in group}

    def _use(self, point: str | None, policy: str | None) -> None:
        if (point, policy) == self._in_use:
            return
        self._in_use = None  # whatever it is, if the next lines fail
        self._session.policy = self._default if policy is None else _policy(policy)
        if point is not None:
            self._session.point = point
        self._in_use = (point, policy)

    def _run(self, parts: list[Any], asked: _Asked, began: float) -> list[Result]:
        hidden = asked.rest is not None and asked.rest.hidden
        images = np.concatenate(parts) if hidden else Inputs.join(parts)
        size = self._session.max_batch if asked.deadline_ms is None else 1
        results: list[Result] = []
        for first in range(0, len(images), size):
            batch = images[first : first + size]
            starts = [began] * len(batch)
            if asked.rest is None:
                assert isinstance(batch, Inputs)
                results += self._session.run(batch, starts=starts, deadline_ms=asked.deadline_ms)
            else:
                results += self._session.run_from(asked.rest.segment, batch, starts=starts)
        return results

    def _count(self, answers: Collection[list[Result] | LGViTEdgeError]) -> None:
        good = [each for each in answers if isinstance(each, list)]
        self._counters.add([r for each in good for r in each], len(answers) - len(good))

    def _response(self, request: Any, answer: list[Result] | LGViTEdgeError) -> Any:
        triton = self._triton
        if isinstance(answer, LGViTEdgeError):
            wrong = isinstance(answer, (UsageError, DataError))
            kind = triton.TritonError.INVALID_ARG if wrong else triton.TritonError.INTERNAL
            return triton.InferenceResponse(error=triton.TritonError(str(answer), kind))
        wanted = set(request.requested_output_names())
        return triton.InferenceResponse(
            output_tensors=[
                triton.Tensor(
                    output.name, np.array([[output.of(each)] for each in answer], output.dtype)
                )
                for output in OUTPUTS
                if output.name in wanted
            ]
        )


def _frames(name: str, array: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """Return the images of an input as arrays ``[H, W, 3] uint8``."""
    if name == IMAGE:
        return list(array)
    files = array.ravel()
    return [decode_bytes(file, f"image {i} of {len(files)}") for i, file in enumerate(files, 1)]


def _policy(text: str) -> Policy:
    """Read a device's policy; raises ``UsageError``."""
    if len(text) > _LONGEST:
        raise UsageError(f"{POLICY} must have {_LONGEST} characters at most, found {len(text)}")
    try:
        return from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the parameter {POLICY} is no JSON: {in_one_line(error)}") from None
