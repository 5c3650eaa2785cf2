"""Every order in which coroutines may take their steps, one after the other.

A step is an ``Op``: what an ``await`` waits for.  It is carried out as a whole, then
its coroutine runs on to its next one.  ``explore`` goes through all orders depth
first; what leads to a state that was there before (the same stored data, and every
coroutine having seen the same answers) is not followed again, since what may come
after is the same, too.  A coroutine that is never stepped again is a process that was
killed: checks hold in every state, so they hold after every crash.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Hashable, Sequence


class Op:
    """A step, to be awaited: ``run`` is called when its turn comes."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run

    def __await__(self) -> Generator[Op, Any, Any]:
        """Wait for the step's turn; return its result."""
        return (yield self)


class Actor:
    """A coroutine that is moved step by step."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._op: Op | None = None
        self.seen = 0  # of all answers so far
        self._send(lambda: coroutine.send(None))

    @property
    def done(self) -> bool:
        """True at its end."""
        return self._op is None

    def step(self) -> None:
        """Carry out the step it waits for, and go on to the next."""
        assert self._op is not None
        try:
            answer = self._op.run()
        except Exception as error:
            failure = error
            self.seen = hash((self.seen, repr(failure)))
            self._send(lambda: self._coroutine.throw(failure))
        else:
            self.seen = hash((self.seen, repr(answer)))
            self._send(lambda: self._coroutine.send(answer))

    def _send(self, go_on: Callable[[], Any]) -> None:
        try:
            self._op = go_on()
            while self._op is None:  # a bare yield: it lets others run
                self._op = self._coroutine.send(None)
        except StopIteration:
            self._op = None

    def close(self) -> None:
        """Kill it."""
        self._coroutine.close()


def run_through(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Take all steps of one coroutine alone."""
    actor = Actor(coroutine)
    while not actor.done:
        actor.step()


class World(Protocol):
    """What the actors share."""

    actors: Sequence[Actor]

    def state(self) -> Hashable:
        """Return everything stored, comparable."""

    def check(self) -> None:
        """Fail unless this state is right."""

    def finish(self) -> None:
        """Fail unless all is right once every actor is at its end."""

    def close(self) -> None:
        """End it."""


@dataclasses.dataclass(slots=True)
class Explored:
    """How much there was."""

    states: int = 0
    orders: int = 0  # that were followed, to an end or a known state
    steps: int = 0
    ends: int = 0  # different states in which all are done


class Broken(AssertionError):
    """A state that is not right, and the order of steps that leads there."""

    def __init__(self, path: Sequence[int], error: AssertionError) -> None:
        super().__init__(f"after steps of {list(path)}: {error}")
        self.path = tuple(path)


def explore(start: Callable[[], World], limit: int = 200_000) -> Explored:
    """Try all orders; ``Broken`` with the first that leads to a wrong state."""
    done, seen = Explored(), set[Any]()
    ahead: list[tuple[int, ...]] = [()]
    while ahead:
        done.orders += 1
        world = start()
        try:
            _follow(world, ahead.pop(), ahead, seen, done)
        finally:
            for actor in world.actors:
                actor.close()
            world.close()
        assert done.states < limit, "more states than expected"
    return done


def _follow(
    world: World,
    prefix: tuple[int, ...],
    ahead: list[tuple[int, ...]],
    seen: set[Any],
    done: Explored,
) -> None:
    """Take the steps of ``prefix``, then go on until nothing is new."""
    for index in prefix:
        world.actors[index].step()
    path = list(prefix)
    done.steps += len(path)
    try:
        while True:
            key = hash((world.state(), *(actor.seen for actor in world.actors)))
            if key in seen:
                return
            seen.add(key)
            done.states += 1
            world.check()
            waiting = [n for n, actor in enumerate(world.actors) if not actor.done]
            if not waiting:
                done.ends += 1
                world.finish()
                return
            ahead.extend((*path, other) for other in waiting[1:])
            path.append(waiting[0])
            world.actors[waiting[0]].step()
            done.steps += 1
    except AssertionError as error:
        raise Broken(path, error) from error
