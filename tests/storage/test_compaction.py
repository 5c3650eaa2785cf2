"""The collector's plan."""

from storage.compaction import Policy, Remove, Rewrite, SegmentUse, plan

POLICY = Policy(grace=100, least_waste=0.5, target=1000, budget=3000)
OLD, YOUNG = 101.0, 99.0


def use(segment, live, octets=1000, quiet=OLD, *, sealed=True):
    return SegmentUse(segment, sealed, octets, live, quiet)


NEWEST = use(99, 1000)


def test_what_is_empty_and_settled_is_removed():
    uses = [use(1, 0), use(2, 0, quiet=YOUNG), use(3, 0, sealed=False), NEWEST]
    assert plan(uses, POLICY) == [Remove(1)]


def test_the_newest_stays_so_that_its_number_is_not_used_again():
    assert plan([use(1, 0), use(2, 0)], POLICY) == [Remove(1)]
    assert plan([], POLICY) == []


def test_only_segments_with_enough_waste_are_rewritten():
    uses = [use(1, 500), use(2, 501), use(3, 900), NEWEST]
    assert plan(uses, POLICY) == [Rewrite((1,), 500)]


def test_segments_are_packed_into_new_ones_emptiest_first():
    uses = [use(1, 400), use(2, 300), use(3, 450), use(4, 200), NEWEST]
    assert plan(uses, POLICY) == [Rewrite((4, 2, 1), 900), Rewrite((3,), 450)]


def test_one_plan_copies_no_more_than_its_budget():
    uses = [use(n, 490) for n in range(1, 20)]
    rewrites = plan(uses, POLICY)
    assert sum(r.octets for r in rewrites) <= POLICY.budget
    assert all(r.octets <= POLICY.target for r in rewrites)
    assert len(rewrites) == 3


def test_young_segments_are_left_alone():
    assert plan([use(1, 10, quiet=YOUNG), NEWEST], POLICY) == []
