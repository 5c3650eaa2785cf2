"""The collector's plan."""

import pytest

from storage.compaction import Packer, Policy, SegmentUse, Step, going_round, judge

POLICY = Policy(
    grace=100, linger=50, least_waste=0.5, target=1000, records=10, small=300
)
OLD, YOUNG = 101.0, 99.0


def use(live, quiet=OLD, retired=None, **more):
    facts = {"sealed": True, "octets": 1000, "segment": 1} | more
    return SegmentUse(live=live, quiet=quiet, retired=retired, **facts)


@pytest.mark.parametrize(
    ("found", "step"),
    [
        (use(0), Step.RETIRE),
        (use(0, retired=0.0), Step.WAIT),
        (use(0, retired=-7.0), Step.WAIT),  # the clock was set back
        (use(0, retired=50.0), Step.REMOVE),
        (use(0, quiet=YOUNG), Step.KEEP),
        (use(0, sealed=False), Step.KEEP),
        (use(0, sealed=False, retired=99.0), Step.KEEP),
        (use(0, quiet=YOUNG, retired=99.0), Step.KEEP),
        (use(500), Step.REWRITE),
        (use(501), Step.KEEP),
        (use(10, quiet=YOUNG), Step.KEEP),
        (use(10, sealed=False), Step.KEEP),
        (use(999, retired=99.0), Step.REWRITE),  # a row came in before the fence
        (use(0, lost=1), Step.KEEP),  # who knows what lies there
        (use(0, retired=99.0, lost=1), Step.KEEP),
        (use(10, lost=1), Step.REWRITE),
        (use(299, octets=299), Step.MERGE),
        (use(300, octets=300), Step.KEEP),
        (use(200, octets=299), Step.MERGE),
        (use(100, octets=299), Step.REWRITE),  # sparse as well
        (use(299, octets=299, quiet=YOUNG), Step.KEEP),
        (use(299, octets=299, sealed=False), Step.KEEP),
        (use(299, octets=299, retired=99.0), Step.REWRITE),
        (use(250, octets=299, lost=1), Step.KEEP),  # it would stay all the same
        (use(0, octets=299), Step.RETIRE),
    ],
)
def test_the_next_step(found, step):
    assert judge(found, POLICY) is step


def test_segments_are_packed_until_one_is_full():
    packer = Packer(POLICY)
    groups = [packer.add(use(400, segment=n), 1) for n in range(1, 6)]
    assert groups == [(), (), (1, 2), (), (3, 4)]
    assert not packer.empty
    assert packer.take() == (5,)
    assert packer.empty
    assert packer.take() == ()


def test_a_group_holds_no_more_records_than_fit_into_memory():
    packer = Packer(POLICY)
    assert packer.add(use(1, segment=1), 6) == ()
    assert packer.add(use(1, segment=2), 6) == (1,)
    assert packer.take() == (2,)


def test_a_segment_larger_than_the_target_is_a_group_of_its_own():
    packer = Packer(POLICY)
    assert packer.add(use(5000, segment=1, octets=20_000), 1) == ()
    assert packer.add(use(10, segment=2), 1) == (1,)


def test_a_run_goes_on_where_the_last_one_stopped():
    assert list(going_round([5, 1, 3], 0)) == [1, 3, 5]
    assert list(going_round([5, 1, 3], 3)) == [5, 1, 3]
    assert list(going_round([5, 1, 3], 4)) == [5, 1, 3]
    assert list(going_round([5, 1, 3], 9)) == [1, 3, 5]
