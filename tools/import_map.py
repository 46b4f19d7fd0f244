"""Counts what the package consists of: modules per folder, imports between folders, circles.

Run by ``make map`` from the folder of links, so that the whole package is seen. A folder here is
an entry directly inside ``lgvit_edge/``: a sub-package, or a module that stands alone.
"""

from __future__ import annotations

import sys
from collections import Counter

import grimp

PACKAGE = "lgvit_edge"
# Its lazy imports are the public names, and experiments are not part of the installed package.
LEFT_OUT = (PACKAGE, f"{PACKAGE}.benchmarks.experiments")


def main() -> int:
    """Print the map; exit status 1 where modules import each other in a circle."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    modules = {m for m in graph.modules if m != PACKAGE and not m.startswith(LEFT_OUT[1])}
    imports = {m: graph.find_modules_directly_imported_by(m) & modules for m in modules}
    sizes = Counter(folder(module) for module in modules)
    between = Counter(
        (folder(module), folder(target))
        for module in modules
        for target in imports[module]
        if folder(module) != folder(target)
    )
    floors = floor_of(set(sizes), between)
    print(f"{'floor':>5} {'folder':<14} {'modules':>7}  imports from")
    for name in sorted(sizes, key=lambda name: (-floors.get(name, 0), name)):
        below = ", ".join(sorted(target for source, target in between if source == name))
        print(f"{floors.get(name, '-'):>5} {name:<14} {sizes[name]:>7}  {below}")
    circles = circles_of(imports)
    print(
        f"{len(modules)} modules in {len(sizes)} folders on {max(floors.values()) + 1} floors; "
        f"{len(between)} pairs of folders import, by {sum(between.values())} imports; "
        f"circles of modules: {len(circles)}"
    )
    for circle in circles:
        print("circle: " + ", ".join(sorted(circle)))
    return 1 if circles else 0


def folder(module: str) -> str:
    """``lgvit_edge.runtime.cuda.driver`` lies in ``runtime``."""
    return module.split(".")[1]


def floor_of(names: set[str], between: Counter[tuple[str, str]]) -> dict[str, int]:
    """How many folders lie below each; folders that import each other have no floor."""
    floors: dict[str, int] = {}
    while ready := {
        name
        for name in names - set(floors)
        if all(target in floors for source, target in between if source == name)
    }:
        for name in ready:
            below = [floors[target] for source, target in between if source == name]
            floors[name] = max(below, default=-1) + 1
    return floors


def circles_of(imports: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[set[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in imports[module]:
            if target not in order:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], order[target])
        if low[module] == order[module]:
            cut = stack.index(module)
            if len(stack) - cut > 1:
                circles.append(set(stack[cut:]))
            del stack[cut:]

    for module in sorted(imports):
        if module not in order:
            visit(module)
    return circles


if __name__ == "__main__":
    sys.exit(main())
