"""Hints inside one process."""

from storage.bus.local import LocalBus


def test_only_those_who_asked_for_the_account_hear_of_it():
    bus, heard = LocalBus(), []
    bus.subscribe(7, lambda *hint: heard.append(("a", *hint)))
    bus.subscribe(7, lambda *hint: heard.append(("b", *hint)))
    bus.subscribe(8, lambda *hint: heard.append(("c", *hint)))
    bus.publish(7, 1042)
    bus.publish(9, 1)
    assert heard == [("a", 7, 1042), ("b", 7, 1042)]


def test_one_that_fails_does_not_silence_the_others():
    bus, heard = LocalBus(), []

    def fail(account, modseq):
        raise RuntimeError

    bus.subscribe(1, fail)
    bus.subscribe(1, lambda *hint: heard.append(hint))
    bus.publish(1, 5)
    assert heard == [(1, 5)]


def test_unsubscribe_ends_it_also_from_within_and_twice():
    bus, heard = LocalBus(), []

    def once(account, modseq):
        heard.append(modseq)
        stop()

    stop = bus.subscribe(1, once)
    other = bus.subscribe(1, lambda account, modseq: heard.append(-modseq))
    bus.publish(1, 5)
    bus.publish(1, 6)
    assert heard == [5, -5, -6]
    stop()
    other()
    bus.publish(1, 7)
    assert heard == [5, -5, -6]
    assert not bus._watched


def test_the_same_callback_may_subscribe_twice():
    bus, heard = LocalBus(), []
    first = bus.subscribe(1, lambda *hint: heard.append(hint))
    bus.subscribe(1, lambda *hint: heard.append(hint))
    first()
    bus.publish(1, 2)
    assert heard == [(1, 2)]
