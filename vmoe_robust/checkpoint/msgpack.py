"""Reads msgpack by what is expected of it, hopping over what is large.

The msgpack library reads a file whole, or in buffers as large as its largest
value, and makes room for as many elements as an array claims to have. Here
nothing is taken into memory but numbers and short strings, and nothing is
believed that the file is too short for. There is no recursion: the caller says
what comes next.
"""

import contextlib
import io
from collections.abc import Iterator

_TEXT = 1 << 10  # names are shorter than this
# First bytes followed by a length, or a number, of so many bytes.
_LONG = {0xC4: ('bytes', 1), 0xC5: ('bytes', 2), 0xC6: ('bytes', 4)}
_LONG |= {0xC7: ('extension', 1), 0xC8: ('extension', 2)}
_LONG |= {0xC9: ('extension', 4)}
_LONG |= {0xCC: ('integer', 1), 0xCD: ('integer', 2), 0xCE: ('integer', 4)}
_LONG |= {0xCF: ('integer', 8)}
_LONG |= {0xD9: ('bytes', 1), 0xDA: ('bytes', 2), 0xDB: ('bytes', 4)}
_LONG |= {0xDC: ('array', 2), 0xDD: ('array', 4)}
_LONG |= {0xDE: ('map', 2), 0xDF: ('map', 4)}
# Ranges of first bytes that hold a length or a number themselves.
_SHORT = (
  (0x00, 0x80, 'integer'),
  (0x80, 0x90, 'map'),
  (0x90, 0xA0, 'array'),
  (0xA0, 0xC0, 'bytes'),
)
_PLAIN = {0xC0: ('nil', 0), 0xC2: ('boolean', 0), 0xC3: ('boolean', 1)}
_PLAIN |= {0xD4 + i: ('extension', 1 << i) for i in range(5)}


class Broken(ValueError):
  """What is read is not what was expected; says where."""


class Scanner:
  """A place in a file of msgpack."""

  def __init__(self, file: io.IOBase, size: int):
    self._file, self.place, self._end = file, 0, size

  def array(self, most: int, exactly: int | None = None) -> int:
    """Enters an array; returns its length."""
    return self._count('array', most, exactly)

  def map(self, most: int) -> int:
    """Enters a map; returns the number of its keys."""
    return self._count('map', most, None)

  def integer(self) -> int:
    """Reads a number that is not negative."""
    return self._expect('integer')

  def nil(self) -> None:
    """Reads a nil."""
    self._expect('nil')

  def boolean(self) -> bool:
    """Reads a boolean."""
    return bool(self._expect('boolean'))

  def text(self) -> str:
    """Reads a short string, or bytes that are one."""
    length = self._expect('bytes')
    if length > _TEXT:
      raise self._broken(f'a name of {length} bytes')
    try:
      return self._take(length).decode()
    except UnicodeDecodeError as error:
      raise self._broken('a name that is not UTF-8') from error

  def hop(self) -> tuple[int, int]:
    """Skips bytes; returns their place and length."""
    length = self._expect('bytes')
    start = self.place
    self._check(length)
    self.place += length
    self._file.seek(self.place)
    return start, length

  @contextlib.contextmanager
  def packed(self, code: int | None = None) -> Iterator[None]:
    """Enters msgpack in bytes or, with a code, in an extension of that type.

    All of it must be read before it is left.
    """
    length = self._expect('bytes' if code is None else 'extension')
    if code is not None and (found := self._take(1)[0]) != code:
      raise self._broken(f'an extension {found} instead of {code}')
    self._check(length)
    outer, self._end = self._end, self.place + length
    yield
    self.finish()
    self._end = outer

  def rest(self) -> None:
    """Skips what is left of `packed` bytes."""
    self.place = self._end
    self._file.seek(self.place)

  def is_extension(self) -> bool:
    """Whether an extension comes next."""
    byte = self._take(1)[0]
    self.place -= 1
    self._file.seek(self.place)
    return _LONG.get(byte, _PLAIN.get(byte, ('',)))[0] == 'extension'

  def finish(self) -> None:
    """Checks that nothing is left."""
    if self.place != self._end:
      raise self._broken(f'{self._end - self.place} bytes too many')

  def _count(self, kind, most, exactly):
    count = self._expect(kind)
    wanted = f'{most} at most' if exactly is None else exactly
    if count > most if exactly is None else count != exactly:
      raise self._broken(f'{count} elements instead of {wanted}')
    return count

  def _expect(self, kind):
    found, value = self._head()
    if found != kind:
      raise self._broken(f'{found} instead of {kind}')
    return value

  def _head(self):
    """The kind of the next value, and its length or itself."""
    byte = self._take(1)[0]
    for low, high, kind in _SHORT:
      if low <= byte < high:
        return kind, byte - low
    if byte in _LONG:
      kind, width = _LONG[byte]
      return kind, int.from_bytes(self._take(width))
    return _PLAIN.get(byte, (f'byte {byte:#x}', 0))

  def _take(self, length):
    self._check(length)
    self.place += length
    found = self._file.read(length)
    if len(found) != length:
      raise self._broken('its end')
    return found

  def _check(self, length):
    if length > self._end - self.place:
      raise self._broken(
        f'{length} bytes announced where {self._end - self.place} are left'
      )

  def _broken(self, what):
    return Broken(f'has {what} at byte {self.place}')
