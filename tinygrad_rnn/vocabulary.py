"""Tokens and their numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DtypeError, ShapeError

IntArray = NDArray[np.int64]
Text = TypeVar("Text", str, list[str])


class Vocabulary(Generic[Text]):
    """The distinct tokens of a text, numbered from 0 in sorted order (by code points).

    Given a ``str``, the tokens are its characters and `decode` returns a ``str``; given any other
    iterable of strings, they are the tokens and `decode` returns a list of strings.

    Parameters
    ----------
    tokens
        A text, or tokens; repeated ones count.
    unknown
        The token that stands for all others, such as ``"<unk>"``. It gets the id 0, the others
        follow. Without it, an unknown token is an error.
    min_count
        Tokens that occur less often are left out.

    Attributes
    ----------
    tokens : tuple of str
        The tokens in the order of their ids.
    unknown : str or None
        As given.

    Raises
    ------
    ValueError
        There is no token.
    TypeError
        A token is not a string.

    Examples
    --------
    >>> vocabulary = Vocabulary("hello")
    >>> vocabulary.tokens
    ('e', 'h', 'l', 'o')
    >>> vocabulary.encode("hole")
    array([1, 3, 2, 0])
    >>> vocabulary.decode([1, 0, 2, 2, 3])
    'hello'
    >>> Vocabulary("to be or not to be".split(), unknown="<unk>", min_count=2).tokens
    ('<unk>', 'be', 'to')
    """

    @overload
    def __init__(
        self: "Vocabulary[str]", tokens: str, *, unknown: str | None = None, min_count: int = 1
    ) -> None: ...

    @overload
    def __init__(
        self: "Vocabulary[list[str]]",
        tokens: Iterable[str],
        *,
        unknown: str | None = None,
        min_count: int = 1,
    ) -> None: ...

    def __init__(
        self, tokens: Iterable[str], *, unknown: str | None = None, min_count: int = 1
    ) -> None:
        least = at_least("min_count", min_count, 1)
        counts = Counter(tokens)
        for token in counts:
            if not isinstance(token, str):
                raise TypeError(f"a token must be a str, got {token!r} ({type(token).__name__})")
        kept = sorted(token for token, count in counts.items() if count >= least)
        if unknown is not None:
            kept = [unknown] + [token for token in kept if token != unknown]
        if not kept:
            raise ValueError(
                f"no token occurs {least} times among {counts.total()}: "
                "a vocabulary needs at least one"
            )
        self.tokens: tuple[str, ...] = tuple(kept)
        self.unknown = unknown
        self._of_characters = isinstance(tokens, str)
        self._ids = {token: i for i, token in enumerate(kept)}
        letters = sorted(token for token in kept if len(token) == 1)
        self._letters = _code_points("".join(letters))
        self._letter_ids = np.array([self._ids[letter] for letter in letters], np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __repr__(self) -> str:
        kind = "characters" if self._of_characters else "tokens"
        return f"Vocabulary({len(self)} {kind}, unknown={self.unknown!r})"

    def encode(self, tokens: Iterable[str]) -> IntArray:
        """Return the ids, int64 (T,), of a text (of characters) or of a sequence of tokens.

        Raises
        ------
        ValueError
            A token is not in the vocabulary and `unknown` is None.
        TypeError
            A text is given to a vocabulary of tokens.

        Examples
        --------
        >>> Vocabulary(["the", "cat", "sat"]).encode(["the", "cat"])
        array([2, 0])
        """
        if isinstance(tokens, str):
            if not self._of_characters:
                raise TypeError(
                    "this is a vocabulary of tokens, but got a text: split it, as in text.split()"
                )
            return self._encode_text(tokens)
        tokens = list(tokens)
        ids = np.array([self._ids.get(token, -1) for token in tokens], np.int64)
        return self._replace_unknown(ids, tokens)

    def decode(self, ids: ArrayLike) -> Text:
        """Return the text (of characters) or the list of tokens of ids (T,).

        Raises
        ------
        IndexError
            An id is not in the vocabulary.
        ShapeError, DtypeError
            The ids are not one sequence of integers.

        Examples
        --------
        >>> Vocabulary(["the", "cat", "sat"]).decode([2, 0])
        ['the', 'cat']
        """
        array = as_ids(ids)
        wrong = np.flatnonzero((array < 0) | (array >= len(self)))
        if wrong.size:
            raise IndexError(
                f"id {array[wrong[0]]} at position {wrong[0]} is not in 0..{len(self) - 1}, "
                f"the ids of these {len(self)} tokens"
            )
        tokens = [self.tokens[i] for i in array.tolist()]
        return "".join(tokens) if self._of_characters else tokens  # type: ignore[return-value]

    def _encode_text(self, text: str) -> IntArray:
        points = _code_points(text)
        ids = np.full(points.shape, -1, np.int64)
        if self._letters.size:
            nearest = np.searchsorted(self._letters, points).clip(max=self._letters.size - 1)
            ids = np.where(self._letters[nearest] == points, self._letter_ids[nearest], ids)
        return self._replace_unknown(ids, text)

    def _replace_unknown(self, ids: IntArray, tokens: Sequence[str]) -> IntArray:
        missing = np.flatnonzero(ids < 0)
        if not missing.size:
            return ids
        if self.unknown is None:
            raise ValueError(
                f"token {tokens[missing[0]]!r} at position {missing[0]} is not among the "
                f"{len(self)} tokens of the vocabulary; unknown='<unk>' would give it an id"
            )
        ids[missing] = self._ids[self.unknown]
        return ids


def as_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return what is not ragged as an array."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ShapeError(f"{name} is ragged: {error}") from error


def as_ids(ids: ArrayLike) -> IntArray:
    """Return one sequence of ids as an array."""
    array = as_array("the sequence of ids", ids)
    if array.ndim != 1:
        raise ShapeError(f"ids have shape {array.shape}: expected one sequence, (T,)")
    if array.size and array.dtype.kind not in "iu":
        raise DtypeError(f"ids have dtype {array.dtype}: expected integers")
    return array.astype(np.int64, copy=False)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def at_least(name: str, value: int, least: int) -> int:
    """Return a whole number that is not too small."""
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r}: expected an integer")
    if value < least:
        raise ValueError(f"{name}={value}: expected at least {least}")
    return int(value)
