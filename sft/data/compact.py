"""Sequences held compressed in memory, for data of many tasks. Knows nothing of what the items are."""

import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeVar, overload

T = TypeVar("T")


class CompactList(Sequence[T]):
    """Items pickled and compressed in blocks; the block of an item that is asked for is inflated, and soon forgotten.

    Rows and steps of recorded tasks repeat their texts so much that they take a tenth of the memory this way.
    """

    def __init__(self, items: Iterable[T], block_size: int = 64):
        self._block_size, self._length = block_size, 0
        self._blocks: list[bytes] = []
        remaining = iter(items)
        while block := tuple(islice(remaining, block_size)):
            self._blocks.append(zlib.compress(pickle.dumps(block, pickle.HIGHEST_PROTOCOL), level=1))
            self._length += len(block)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(map(_inflate, self._blocks))

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        at = index + self._length if index < 0 else index
        if not 0 <= at < self._length:
            raise IndexError(f"found index {index}; expected one of {self._length} items")
        return _inflate(self._blocks[at // self._block_size])[at % self._block_size]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@lru_cache(maxsize=8)
def _inflate(block: bytes) -> tuple[Any, ...]:
    return pickle.loads(zlib.decompress(block))
