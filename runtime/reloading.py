"""Exchanges what a session serves with, for another bundle, between two frames.

The new bundle is loaded as a session of its own, checked there, and then the two exchange all that
belongs to their bundles. So nothing is ever half exchanged, and what came before is closed as a
session is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lgvit_edge.errors import UsageError
from lgvit_edge.policies import Policy
from lgvit_edge.runtime.deciding import DecidingBundle
from lgvit_edge.runtime.loaded import check_coarsely, check_parity
from lgvit_edge.runtime.target_rate import TargetRate

Deciding = TypeVar("Deciding", bound=DecidingBundle)
# What belongs to the session and not to its bundle.
_KEPT = ("_lock", "_reloads", "_memories", "hooks", "notes")


def switch(
    session: Deciding,
    open_new: Callable[[Policy | None, str | None], Deciding],
    exchanged: Callable[[Deciding], None],
    policy: Policy | None,
    point: str | None,
    *,
    other_classes: bool,
) -> Deciding:
    """Let a session serve with another bundle; return what holds the one before, to be closed.

    ``open_new`` opens the other one with a policy, a point, or its own policy; see
    ``Session.reload``. ``exchanged`` is told what holds the one before, while no frame runs. Until
    the exchange nothing of the session is changed.

    Raises:
        LGViTEdgeError: as ``Session.reload``.
    """
    given = (policy, point)
    if not session._chosen.backend:
        raise UsageError("only a session of Session.open can be given another bundle")
    with session._lock:
        session._check_open()
        before = (session._policy, session._point)
        if given == (None, None):
            policy, point = _kept(session)
    new = open_new(policy, point)
    try:
        _check_fits(session, new, other_classes=other_classes)
        _check_answers(new)
        new.warm_up()
        while True:
            with session._lock, new._lock:
                session._check_open()
                now = (session._policy, session._point)
                if given != (None, None) or now == before:
                    _exchange(session, new)
                    exchanged(new)
                    return new
                before, (policy, point) = now, _kept(session)
            # Somebody set another policy meanwhile.
            if point is not None:
                new.point = point
            elif policy is not None:
                new.policy = policy
    except BaseException:
        new.close()
        raise


def _kept(session: DecidingBundle) -> tuple[Policy | None, str | None]:
    """Return the policy or the point that stays, neither where the bundle's own is in use."""
    if session._point is not None:
        return None, session._point
    if session._from_bundle:
        return None, None
    policy = session._policy
    return policy.again() if isinstance(policy, TargetRate) else policy, None


def _exchange(one: DecidingBundle, other: DecidingBundle) -> None:
    mine, its = vars(one), vars(other)
    for name in its.keys() - set(_KEPT):
        mine[name], its[name] = its[name], mine[name]


def _check_fits(old: DecidingBundle, new: DecidingBundle, *, other_classes: bool) -> None:
    """Refuse a bundle that images under way, or who reads the answers, could not go on with."""
    root, had, has = new._bundle.root, old.manifest, new.manifest
    if had.views != has.views:
        expected, found = (
            "; ".join(f"{view.dtype}, {view.preprocess.described(view.size)}" for view in views)
            for views in (had.views, has.views)
        )
        raise UsageError(
            f"{root} takes other images than this session has prepared: expected {expected}; found "
            f"{found}; open it as a session of its own"
        )
    if new.max_batch < old.max_batch:
        raise UsageError(
            f"{root} runs at most {new.max_batch} images together, expected {old.max_batch}, which "
            f"streams under way may send; export it with --batch 1:{old.max_batch}:{old.max_batch}"
        )
    if old._on_gpu and not new._on_gpu:
        raise UsageError(
            f"{root} takes no images on the GPU here, as this session does; open it as a session "
            "of its own"
        )
    if not other_classes and (had.labels, had.num_classes) != (has.labels, has.num_classes):
        told = [
            f"{m.num_classes} ({', '.join(m.labels[:5])}{', ...' if m.labels[5:] else ''})"
            for m in (had, has)
        ]
        raise UsageError(
            f"{root} has other classes: expected {told[0]}, found {told[1]}, or in another order; "
            "if that is meant: session.reload(..., other_classes=True)"
        )


def _check_answers(new: DecidingBundle) -> None:
    """Compare the logits of what will serve with PyTorch's, on the bundle's samples."""
    with new._lock:
        if new._chosen.lower:
            check_coarsely(new._bundle, new.chain)
            return
        # That somebody accepted for the engines; of other backends, the bundle's.
        tolerance = getattr(new.chain, "tolerance", None)
        check_parity(new._bundle, new.chain, new._walk.whole, tolerance)
