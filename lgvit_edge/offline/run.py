"""Runs a job: answers every image of a folder or list, however often it is killed on the way."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lgvit_edge._support.files import locked
from lgvit_edge._support.numbers import whole
from lgvit_edge._support.outputs import FULL, check_file, followed
from lgvit_edge._support.terminal import progress_bar
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import UsageError
from lgvit_edge.machine.cpu import available_cores
from lgvit_edge.offline.batches import answer_batches
from lgvit_edge.offline.formats import Format, format_of
from lgvit_edge.offline.job import (
    Finished,
    Job,
    check_same,
    new_job,
    read_job,
    settled,
    write_job,
)
from lgvit_edge.offline.joining import join
from lgvit_edge.offline.listing import Listed, Listing, list_images
from lgvit_edge.offline.opening import Opening
from lgvit_edge.offline.parts import Parts
from lgvit_edge.offline.speed import Speed

Note = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a job has given.

    Attributes:
        images: how many there are in the folder or list.
        answered: how many have an answer.
        unreadable: how many cannot be read.
        exits: answers at each exit, 1..M + 1.
        earlier: images that earlier runs had done.
        seconds: that answering took in this run, the opening of the bundle included.
        unreadable_list: the file that names those that cannot be read; None if there are none.
    """

    images: int
    answered: int
    unreadable: int
    exits: tuple[int, ...]
    earlier: int
    seconds: float
    unreadable_list: str | None

    @property
    def images_per_second(self) -> float | None:
        """Images that this run did in a second; None if it did none."""
        done = self.images - self.earlier
        return done / self.seconds if done and self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain types."""
        return {**vars(self), "images_per_second": self.images_per_second}


def answer_images(
    engines: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    policy: Any = None,
    point: str | None = None,
    options: dict[str, Any] | None = None,
    batch: int | None = None,
    decoders: int | None = None,
    times: bool = False,
    restart: bool = False,
    ray: str | None = None,
    note: Note = lambda text: None,
) -> Outcome:
    """Answer every image of a folder or a list into one file; see docs/folders.md.

    What an earlier call has answered is not answered again: a call that was killed loses a batch,
    or with ``ray`` the shards that machines were at. The file is written at the end, whole, and is
    the same as that of a call that was never disturbed.

    Example:
        outcome = answer_images("out/", "photos/", "answers.jsonl")
        print(outcome.answered, outcome.unreadable)

    Args:
        engines: the bundle's folder.
        data: a folder of images, however deep, or a text file with a path in each line.
        out: the file of answers, ``.jsonl`` or ``.parquet``.
        policy: as of ``Session.open``.
        point: as of ``Session.open``.
        options: other arguments of ``Session.open``, by name.
        batch: images that run together; None for the bundle's usual batch.
        decoders: threads that decode ahead; None for one per core, 8 at most.
        times: whether answers have latencies, which are others in every run.
        restart: whether what is there at ``out`` is removed, and the job begun anew.
        ray: the address of a Ray cluster that does the work; ``local`` for one on this machine.
        note: takes what people should know.

    Raises:
        UsageError: an argument is invalid, ``out`` was begun with something else, or another
            process writes it.
        DataError: there are no images, none can be read, or their storage went away.
        BundleError, BackendError: as of ``Session.open`` and ``Session.run``.
        MissingDependency: pyarrow, Ray or the backend is not installed.
        OSError: the output cannot be written; what is answered is kept.
    """
    out = Path(out)
    check_file(out, streams=False)
    form = format_of(out)
    opening = Opening(str(Path(engines).absolute()), policy, point, options or {})
    manifest = open_bundle(engines, verify=False).manifest
    most = manifest.batch[2]
    size = manifest.batch[1] if batch is None else whole("batch", batch)
    if size > most:
        raise UsageError(
            f"the bundle takes at most {most} images together, found a batch of {size}; export it "
            f"with --batch 1:{size}:{size}"
        )
    decoders = min(8, available_cores()) if decoders is None else whole("decoders", decoders)
    listing = list_images(Path(data), note)
    job = new_job(manifest, opening.policy_of(manifest), listing, batch=size, times=times)
    work = _Work(followed(out), form, opening, listing, decoders, len(manifest.segments), note)
    lock = work.out.with_name(f".{work.out.name}.lock")
    try:
        with locked(lock):
            return work.run(job, restart=restart, ray=ray)
    except BlockingIOError as holder:
        raise UsageError(
            f"{out} is being written by {holder}; wait for it, or name another --out"
        ) from None


@dataclass(frozen=True)
class _Work:
    """A job with all it needs, while nobody else works on its output."""

    out: Path
    form: Format
    opening: Opening
    listing: Listing
    decoders: int
    exits: int
    note: Note

    def run(self, job: Job, *, restart: bool, ray: str | None) -> Outcome:
        """Do what is left of the job."""
        if restart:
            for path in (self._parts, self._unreadable, self.out, self._record):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        job = self._begin(job)
        if job.finished is not None:
            shutil.rmtree(self._parts, ignore_errors=True)  # of a run that was killed right before
            return self._outcome(job.finished, job.images, 0.0)
        with (
            Parts(self._parts, job, self.listing) as parts,
            progress_bar("answering") as update,
        ):
            earlier, speed = len(parts), Speed(len(parts), job.images, update)
            try:
                if parts.missing():
                    answers = self._here if ray is None else partial(self._on_cluster, ray)
                    job = answers(job, parts, speed)
                seconds = speed.seconds
                with self._kept():
                    finished = join(parts, job, self.out, self._unreadable, self.form, self.exits)
            except KeyboardInterrupt:
                again = "the same command again" + " without --restart" * restart
                self.note(
                    f"{len(parts):,} of {job.images:,} images are done and kept; to go on, run "
                    f"{again}"
                )
                raise
        with self._kept():
            write_job(self._record, dataclasses.replace(job, finished=finished))
        shutil.rmtree(self._parts)
        return self._outcome(finished, earlier, seconds)

    def _begin(self, job: Job) -> Job:
        """Return the job that was begun here before, or write down that this one is."""
        begun = read_job(self._record)
        if begun is None:
            for path in (self.out, self._parts):
                if path.exists():
                    raise UsageError(
                        f"{path} exists, and no {self._record.name} beside it says what it was "
                        "made with; name another --out, or replace it with --restart"
                    )
            write_job(self._record, job)
            return job
        check_same(self.out, begun, job)
        if (finished := begun.finished) is not None:
            size = self.out.stat().st_size if self.out.exists() else None
            if size != finished.bytes:
                found = "no such file" if size is None else f"found {size}"
                raise UsageError(
                    f"{self.out} is not what was written: expected {finished.bytes} bytes, "
                    f"{found}; name another --out, or begin anew with --restart"
                )
        return begun

    def _here(self, job: Job, parts: Parts, speed: Speed) -> Job:
        """Answer in this process."""
        with self.opening.open(job.bundle) as session:
            job = self._settle(job, session.describe())
            if hint := session.describe().get("hint"):
                self.note(hint)
            taken: deque[int] = deque()

            def batches() -> Iterator[list[Listed]]:
                for shard in parts.missing():
                    for images in parts.batches(shard):
                        taken.append(shard)
                        yield [self.listing[index] for index in images]

            answers = answer_batches(
                session,
                batches(),
                decoders=self.decoders,
                times=job.times,
                readable=parts.readable(),
            )
            with closing(answers):
                for lines in answers:
                    with self._kept():
                        parts.append(taken.popleft(), lines)
                    speed.add(len(parts))
        return job

    def _on_cluster(self, address: str, job: Job, parts: Parts, speed: Speed) -> Job:
        """Let a cluster answer, shard by shard."""
        from lgvit_edge.offline.cluster import Task, answer_shards

        task = Task(self.opening, job.bundle, job.policy, self.listing.root, job.batch, job.times)
        shards = (
            (shard, [self.listing[index] for index in parts.images_of(shard)])
            for shard in parts.missing()
        )
        with closing(answer_shards(address, task, shards, job.ran)) as answers:
            for shard, described, lines in answers:
                job = self._settle(job, described)
                with self._kept():
                    parts.put(shard, lines)
                speed.add(len(parts))
        return job

    def _settle(self, job: Job, described: dict[str, Any]) -> Job:
        settled_job = settled(self.out, job, described)
        if settled_job is not job:
            with self._kept():
                write_job(self._record, settled_job)
        return settled_job

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Say of an output that cannot be written that what was answered is there all the same."""
        try:
            yield
        except OSError as error:
            number = error.errno or errno.EIO
            cure = "make room" if number in FULL else "mend that"
            raise OSError(
                number,
                f"{os.strerror(number)}; what is answered is kept in {self._parts}: {cure}, then "
                "run the same command again",
                str(self.out),
            ) from None

    def _outcome(self, finished: Finished, earlier: int, seconds: float) -> Outcome:
        return Outcome(
            images=finished.answered + finished.unreadable,
            answered=finished.answered,
            unreadable=finished.unreadable,
            exits=finished.exits,
            earlier=earlier,
            seconds=seconds,
            unreadable_list=str(self._unreadable) if finished.unreadable else None,
        )

    @property
    def _record(self) -> Path:
        return self.out.with_name(f"{self.out.name}.job.json")

    @property
    def _parts(self) -> Path:
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def _unreadable(self) -> Path:
        return self.out.with_name(f"{self.out.name}.unreadable.jsonl")
