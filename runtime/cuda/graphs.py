"""CUDA graphs put together node by node, some behind a condition that a kernel sets.

Conditional nodes exist since CUDA 12.3; before 12.6 some kernels failed in them
(NVIDIA-NeMo/Speech#9869). Structures are those of cuda.h.
"""

from __future__ import annotations

import ctypes

from lgvit_edge.errors import BackendError
from lgvit_edge.runtime.cuda.driver import Driver

_KERNEL, _CHILD, _CONDITIONAL = 0, 4, 13  # CU_GRAPH_NODE_TYPE_...
_DEFAULT_AT_LAUNCH = 1  # CU_GRAPH_COND_ASSIGN_DEFAULT
# Kinds of nodes that a conditional node may hold, besides child graphs of such nodes (cuda.h,
# CUDA_CONDITIONAL_NODE_PARAMS), and names of others.
_ALLOWED = {_KERNEL: "kernel", 1: "copy", 2: "memset", 5: "empty"}
_OTHERS = {3: "host function", 6: "event wait", 7: "event record", 10: "allocation", 11: "free"}

_Handle = ctypes.c_void_p


class _KernelParams(ctypes.Structure):
    _fields_ = [
        ("function", _Handle),
        ("blocks", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("arguments", _Handle),
        ("extra", _Handle),
        ("kernel", _Handle),
        ("context", _Handle),
    ]


class _ChildParams(ctypes.Structure):
    _fields_ = [("graph", _Handle), ("ownership", ctypes.c_int)]  # 0: it is cloned


class _ConditionalParams(ctypes.Structure):
    _fields_ = [
        ("handle", ctypes.c_ulonglong),
        ("type", ctypes.c_int),  # 0: if
        ("size", ctypes.c_uint),
        ("bodies", ctypes.POINTER(_Handle)),  # the driver's array
        ("context", _Handle),
    ]


class _Params(ctypes.Union):
    _fields_ = [
        ("kernel", _KernelParams),
        ("child", _ChildParams),
        ("conditional", _ConditionalParams),
        ("padding", ctypes.c_longlong * 29),
    ]


class NodeParams(ctypes.Structure):
    """``CUgraphNodeParams``."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("reserved0", ctypes.c_int * 3),
        ("of", _Params),
        ("reserved2", ctypes.c_longlong),
    ]


class GraphInParts:
    """Builds a CUDA graph whose nodes run one after the other, in the order they are added.

    Every method raises ``BackendError`` where the driver refuses.

    Attributes:
        graph: its handle, for ``Cuda.runnable`` or ``Cuda.discard``.
    """

    def __init__(self, driver: Driver, context: int) -> None:
        """Begin an empty graph; use ``Cuda.graph_in_parts`` instead."""
        self._call, self._context = driver.call, context
        self.graph = self._empty()
        self._last: dict[int | None, _Handle] = {}  # each graph's last node

    def condition(self) -> int:
        """Make the condition of one ``add_if``; every launch begins with it false."""
        handle = ctypes.c_ulonglong()
        initial, flags = ctypes.c_uint(0), ctypes.c_uint(_DEFAULT_AT_LAUNCH)
        self._call(
            "cuGraphConditionalHandleCreate",
            *(ctypes.byref(handle), self.graph, _Handle(self._context), initial, flags),
        )
        return handle.value

    def add_kernel(
        self,
        kernel: _Handle,
        blocks: tuple[int, int, int],
        threads: tuple[int, int, int],
        argument: ctypes.Structure,
    ) -> None:
        """Add a kernel, whose only parameter is the structure ``argument``, which is copied."""
        given = (_Handle * 1)(ctypes.addressof(argument))
        params = NodeParams(type=_KERNEL)
        params.of.kernel = _KernelParams(
            function=kernel, blocks=blocks, threads=threads, arguments=ctypes.addressof(given)
        )
        self._add(self.graph, params)

    def add_graph(self, graph: _Handle) -> None:
        """Add a copy of a graph."""
        self._add_child(self.graph, graph)

    def add_if(self, condition: int, graph: _Handle) -> None:
        """Add a copy of a graph; it runs only if a kernel of this launch has set the condition."""
        self._check_kinds(graph)
        params = NodeParams(type=_CONDITIONAL)
        params.of.conditional = _ConditionalParams(handle=condition, size=1, context=self._context)
        self._add(self.graph, params)
        self._add_child(_Handle(params.of.conditional.bodies[0]), graph)

    def _check_kinds(self, graph: _Handle) -> None:
        """Refuse a graph with nodes that no conditional node may hold.

        The driver itself would only speak of an invalid argument, and later.
        """
        count = ctypes.c_size_t()
        self._call("cuGraphGetNodes", graph, None, ctypes.byref(count))
        nodes = (_Handle * count.value)()
        self._call("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
        for node in map(_Handle, nodes):
            kind, inner = ctypes.c_int(), _Handle()
            self._call("cuGraphNodeGetType", node, ctypes.byref(kind))
            if kind.value == _CHILD:
                self._call("cuGraphChildGraphNodeGetGraph", node, ctypes.byref(inner))
                self._check_kinds(inner)
            elif kind.value not in _ALLOWED:
                found = _OTHERS.get(kind.value, f"kind {kind.value}")
                raise BackendError(
                    f"a conditional node may hold {', '.join(_ALLOWED.values())}, found {found}"
                )

    def _add_child(self, into: _Handle, graph: _Handle) -> None:
        params = NodeParams(type=_CHILD)
        params.of.child = _ChildParams(graph=graph)
        self._add(into, params)

    def _add(self, into: _Handle, params: NodeParams) -> None:
        node, before = _Handle(), self._last.get(into.value)
        after = (_Handle * 1)(before) if before else None
        count = ctypes.c_size_t(1 if before else 0)
        self._call(
            "cuGraphAddNode_v2",
            *(ctypes.byref(node), into, after, None, count, ctypes.byref(params)),
        )
        self._last[into.value] = node

    def _empty(self) -> _Handle:
        graph = _Handle()
        self._call("cuGraphCreate", ctypes.byref(graph), ctypes.c_uint(0))
        return graph
