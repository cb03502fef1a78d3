"""Making items ahead of their use, in a background thread."""

import threading
from collections.abc import Generator
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
