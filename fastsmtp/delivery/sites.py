"""Who waits for which site, and what a shard may have at a time.  Pure bookkeeping of the dispatcher.

A site's jobs are first in, first out.  A shard gets a window of jobs of each
site and one of all; sites take turns, so one with a thousand jobs doesn't hold
back one with a single job.  No site gets more of a shard's window than it leaves
free: ten sites that hang have nine tenths of it, a hundred have 99 of 100, and
there is always some for the next one.  What is too much for memory is not taken:
the deferred index has room.  Rank 6: pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from fastsmtp.delivery.job import Job, shard_of

# In a shard at a time: of one site, more than its connections and what is pipelined need; of all.
SITE_WINDOW = 100
SHARD_WINDOW = 1_000
# Of the records of these; beyond it a site has one at a time.
SHARD_BYTES = 67_108_864
# Waiting in memory, of one site and of all (twice as many where each is another site's); about 400 bytes each.
SITE_WAITING = 10_000
WAITING = 50_000


class Site:
    """One destination.  open: jobs that its shard has."""

    __slots__ = ("is_queued", "name", "open", "shard", "waiting")

    def __init__(self, name: str, shard: int) -> None:
        self.name = name
        self.shard = shard
        self.waiting: deque[Job] = deque()
        self.open = 0
        self.is_queued = False


class Sites:
    """All of them that have anything to do, by name.

    waiting   jobs in memory that no shard has
    """

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.waiting = 0
        self._sites: dict[str, Site] = {}
        self._turns: list[deque[Site]] = [deque() for _ in range(shards)]
        self._open = [0] * shards
        self._bytes = [0] * shards

    def add(self, job: Job) -> bool:
        """False when there is no room: it is to wait in the index."""
        site = self._sites.get(job.site)
        if self.waiting >= WAITING and ((site is not None and site.waiting) or self.waiting >= 2 * WAITING):
            # A site that nobody waits for yet is let in: a slow one must not shut out the others.
            return False
        if site is None:
            site = self._sites[job.site] = Site(job.site, shard_of(job.site, self.shards))
        elif len(site.waiting) >= SITE_WAITING:
            return False
        site.waiting.append(job)
        self.waiting += 1
        self._enqueue(site)
        return True

    def put_back(self, jobs: list[Job]) -> None:
        """The shard that had them died: they are the first to go out again, in their order."""
        for job in reversed(jobs):
            site = self._sites[job.site]
            self._close(site, job)
            site.waiting.appendleft(job)
            self.waiting += 1
            self._enqueue(site)

    def take(self, shard: int) -> Iterator[Job]:
        """Jobs that this shard has room for; one of each site in turn."""
        turns = self._turns[shard]
        passed = 0
        while passed < len(turns) and self._open[shard] < SHARD_WINDOW:
            site = turns.popleft()
            if not self._has_room(site):
                turns.append(site)
                passed += 1
                continue
            passed = 0
            site.is_queued = False
            job = site.waiting.popleft()
            self.waiting -= 1
            site.open += 1
            self._open[shard] += 1
            self._bytes[shard] += job.place.size_bytes
            self._enqueue(site)
            yield job

    def _has_room(self, site: Site) -> bool:
        """Whether it may have one more, the others considered."""
        shard = site.shard
        return site.open < SHARD_WINDOW - self._open[shard] and (
            not site.open or self._bytes[shard] < SHARD_BYTES
        )

    def over(self, job: Job) -> int:
        """Its shard is done with it; which shard that is."""
        site = self._sites[job.site]
        self._close(site, job)
        if site.waiting:
            self._enqueue(site)
        elif not site.open:
            del self._sites[job.site]
        return site.shard

    def _close(self, site: Site, job: Job) -> None:
        site.open -= 1
        self._open[site.shard] -= 1
        self._bytes[site.shard] -= job.place.size_bytes

    def shard_of(self, site: str) -> int:
        return self._sites[site].shard

    def jobs(self) -> Iterator[Job]:
        """Those that wait."""
        for site in self._sites.values():
            yield from site.waiting

    def room(self) -> int:
        """How many more may come in."""
        return max(WAITING - self.waiting, 0)

    def _enqueue(self, site: Site) -> None:
        if not site.is_queued and site.waiting and site.open < SITE_WINDOW:
            site.is_queued = True
            self._turns[site.shard].append(site)
