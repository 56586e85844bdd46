"""Session ids are unique across workers, within a millisecond, and over a clock that steps back."""

from fastsmtp.smtp.ids import SessionIds


def test_ids_differ_within_one_instant_and_sort_by_time() -> None:
    now = [1_800_000_000.0]
    ids = SessionIds(3, lambda: now[0])
    made = [ids.next() for _ in range(5_000)]
    now[0] += 10.0
    made.append(ids.next())
    assert len(set(made)) == 5_001
    assert made == sorted(made)
    assert {len(one) for one in made} == {12}


def test_ids_go_on_when_the_clock_steps_back() -> None:
    now = [1_800_000_000.0]
    ids = SessionIds(0, lambda: now[0])
    first = ids.next()
    now[0] -= 3_600.0
    assert ids.next() > first


def test_two_workers_never_make_the_same_id() -> None:
    now = 1_800_000_000.0
    one, other = SessionIds(1, lambda: now), SessionIds(2, lambda: now)
    assert not {one.next() for _ in range(100)} & {other.next() for _ in range(100)}


def test_a_restarted_worker_makes_new_ids() -> None:
    before = SessionIds(1, lambda: 1_800_000_000.0)
    used = {before.next() for _ in range(100)}
    after = SessionIds(1, lambda: 1_800_000_000.2)
    assert after.next() not in used
