"""Making items ahead of their use, in background threads."""

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class _Filler(threading.Thread, Generic[T]):
    """Moves items from the source into a queue that holds at most `depth` of them."""

    def __init__(self, source: Generator[T], depth: int) -> None:
        super().__init__(name="lowland-prefetch", daemon=True)
        self.ready: SimpleQueue[T | _End] = SimpleQueue()
        self.free = threading.Semaphore(depth)
        self._closed = threading.Event()
        self._source = source

    def run(self) -> None:
        try:
            while self._wait_for_place():
                self.ready.put(next(self._source))
        except StopIteration:
            self.ready.put(_End(None))
        except BaseException as error:
            self.ready.put(_End(error))
        finally:
            self._source.close()

    def close(self) -> None:
        """Ends the thread once the item it is making is done."""
        self._closed.set()
        self.free.release()
        self.join()

    def _wait_for_place(self) -> bool:
        self.free.acquire()
        return not self._closed.is_set()


class _End:
    """The source has ended, by an error if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(source: Generator[T], depth: int) -> Generator[T]:
    """Yields what the source yields, made up to `depth` items ahead; depth 0 makes each when it is asked for.

    An error of the source is raised here, after the items before it.  Closing this generator (or
    dropping it) ends the thread and closes the source.
    """
    if depth == 0:
        yield from source
        return
    filler = _Filler(source, depth)
    filler.start()
    try:
        while True:
            item = filler.ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            filler.free.release()
            yield item
    finally:
        filler.close()


def built_ahead(build: Callable[[int], T], depth: int) -> Generator[T]:
    """Yields build(0), build(1), … without end, up to `depth` of them made at a time, each by a thread of its own.

    For items that do not depend on each other.  Depth 0 makes each when it is asked for.  An error is raised here, in
    its item's place.  Closing this generator ends the threads, once the items they are making are done.
    """
    if depth == 0:
        yield from map(build, count())
        return
    pool = ThreadPoolExecutor(depth, thread_name_prefix="lowland-prefetch")
    try:
        under_way: deque[Future[T]] = deque(pool.submit(build, index) for index in range(depth))
        for index in count(depth):
            item = under_way.popleft().result()
            under_way.append(pool.submit(build, index))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
