"""Label Studio's brush RLE: bool mask <-> bytes.

The bit stream of https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack over the RGBA bytes of the
brush layer: 32 bits element count, 5 bits word size - 1, four times 4 bits field size - 1; then tokens of
1 bit (1 = run, 0 = literal words), 2 bits which field size, count - 1 in a field of that size, and one word
(run) or `count` words (literal).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sspsam.images.masks import MAX_PIXELS, BoolMask, Ints, MaskFormatError, MaskRuns, as_mask

CHANNELS = 4  # RGBA
ALPHA_THRESHOLD = 127  # alpha values above this are mask: brush strokes have antialiased edges

MAX_RLE_BYTES = 2**24  # a ragged mask of 100 megapixels has a third of that

_WORD_BITS = 8
_FIELD_BITS = (3, 4, 8, 16)  # written by Label Studio's converter; others are read as well
_HEADER_BITS = 32 + 5 + 4 * 4
_MAX_RUN = 2 ** _FIELD_BITS[-1]
_MAX_ELEMENTS = 2**32 - 1

_PIECE_BITS = 2**15  # of the stream, processed at once


def mask_to_brush_rle(mask: npt.NDArray[Any]) -> list[int]:
    """Encodes a mask as Label Studio's brush RLE.

    Args:
        mask: (H, W) bool, or any number type in which non-zero is mask.

    Returns:
        Bytes as ints 0..255, equal to what label_studio_sdk.converter.brush.mask2rle writes for the
        mask as uint8 0 / 255.

    Raises:
        MaskFormatError: Not two-dimensional, no pixels, or more than 2**30 of them.
    """
    flat = as_mask(mask).ravel()
    if flat.size * CHANNELS > _MAX_ELEMENTS:
        raise MaskFormatError(f"brush RLE counts elements in 32 bits; {mask.shape} has too many")
    # All four channels of a pixel are 0 or 255 together, so the runs of the RGBA bytes are those of the mask,
    # four times as long: the bytes themselves are never made.
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], edges, [flat.size])) * CHANNELS
    codes, code_bits = _run_codes(np.diff(bounds), flat[bounds[:-1] // CHANNELS])
    field_sizes = 0
    for field in _FIELD_BITS:
        field_sizes = field_sizes << 4 | (field - 1)
    header = [flat.size * CHANNELS, (_WORD_BITS - 1) << 16 | field_sizes]
    codes = np.concatenate((np.array(header, dtype=np.uint64), codes))
    return _pack_bits(codes, np.concatenate(([32, _HEADER_BITS - 32], code_bits)))


def brush_rle_to_mask(rle: Sequence[int], height: int, width: int) -> BoolMask:
    """Decodes Label Studio's brush RLE; alpha above 127 is mask.

    Args:
        rle: Bytes as ints 0..255, from our encoder, label_studio_sdk or the browser's brush.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.

    Returns:
        (H, W) bool.

    Raises:
        MaskFormatError: The stream is truncated, is not bytes, is of another image size, or is too large.
    """
    return brush_rle_to_runs(rle, height, width).to_mask()


def brush_rle_to_runs(rle: Sequence[int], height: int, width: int, max_pixels: int = MAX_PIXELS) -> MaskRuns:
    """Reads Label Studio's brush RLE, as `brush_rle_to_mask`, without making the mask.

    Args:
        rle: Bytes as ints 0..255.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        max_pixels: Larger images are refused before anything is read: few bytes can stand for many pixels.

    Raises:
        MaskFormatError: As there.
    """
    if min(height, width) < 0 or height * width > max_pixels:
        raise MaskFormatError(f"a mask of {height} x {width} pixels; at most {max_pixels} are read")
    try:
        data = np.frombuffer(bytes(rle[: MAX_RLE_BYTES + 1]) if len(rle) else b"", dtype=np.uint8)
    except (TypeError, ValueError) as error:
        raise MaskFormatError(f"brush RLE is not a list of numbers 0..255: {error}") from error
    if data.size > MAX_RLE_BYTES:
        raise MaskFormatError(f"brush RLE of more than {MAX_RLE_BYTES} bytes, the most that are read")
    if data.size * 8 < _HEADER_BITS:
        raise MaskFormatError(f"brush RLE is cut: {data.size} bytes do not hold its header")
    return _decode(data, height, width)


def _run_codes(lengths: Ints, filled: BoolMask) -> tuple[npt.NDArray[np.uint64], Ints]:
    """Turns runs into the code of each token and its number of bits; long runs become several tokens."""
    # A count has 16 bits at most: a longer run is written as full tokens and a rest, as the reference does.
    pieces = -(-lengths // _MAX_RUN)
    last = np.cumsum(pieces) - 1
    counts = np.full(int(last[-1]) + 1, _MAX_RUN, dtype=np.int64)
    counts[last] = lengths - (pieces - 1) * _MAX_RUN
    words = np.where(np.repeat(filled, pieces), 2**_WORD_BITS - 1, 0)
    # The smallest field that holds count - 1; the reference chooses alike, so the bytes are equal.
    which = np.searchsorted(2 ** np.array(_FIELD_BITS), counts)
    field_bits = np.array(_FIELD_BITS)[which]
    codes = (((0b100 | which) << field_bits | (counts - 1)) << _WORD_BITS) | words
    return codes.astype(np.uint64), 3 + field_bits + _WORD_BITS


def _pack_bits(codes: npt.NDArray[np.uint64], code_bits: Ints) -> list[int]:
    """Writes codes consecutively, most significant bit first.

    Each code has at most 32 bits, so in each 64-bit word only the last code that starts there can extend into
    the next word.
    """
    # All codes are placed at once: writing a ragged 12-megapixel mask bit by bit takes seconds in Python.
    ends = np.cumsum(code_bits)
    starts = ends - code_bits
    word_of = starts >> 6
    room = 64 - (starts & 63) - code_bits  # negative: bits that extend into the next word
    over = np.maximum(-room, 0).astype(np.uint64)
    heads = np.where(room >= 0, codes << np.maximum(room, 0).astype(np.uint64), codes >> over)
    # Codes that start in one word touch different bits of it, so OR joins them.
    first_in_word = np.flatnonzero(np.diff(word_of, prepend=-1))
    words = np.zeros(int(word_of[-1]) + 2, dtype=np.uint64)
    words[:-1] = np.bitwise_or.reduceat(heads, first_in_word)
    spilled = np.flatnonzero(room < 0)
    words[word_of[spilled] + 1] |= codes[spilled] << (np.uint64(64) - over[spilled])
    n_bytes = int(ends[-1]) // 8 + 1  # the reference adds a whole padding byte if no padding is needed
    packed: list[int] = words.astype(">u8").view(np.uint8)[:n_bytes].tolist()
    return packed


def _decode(data: npt.NDArray[np.uint8], height: int, width: int) -> MaskRuns:
    header = int.from_bytes(data[:7].tobytes(), "big") >> 3
    n_elements, word_bits = header >> 21, (header >> 16 & 31) + 1
    field_bits = np.array([(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)])
    if n_elements != height * width * CHANNELS or n_elements == 0:
        raise MaskFormatError(
            f"brush RLE of {n_elements} elements; "
            f"an image of {height} x {width} pixels has {height * width * CHANNELS}"
        )
    if word_bits != _WORD_BITS:
        raise MaskFormatError(f"brush RLE of {word_bits}-bit words; brush layers have {_WORD_BITS} bits")
    tokens = _TokenReader(data, field_bits)
    positions = tokens.positions()
    is_run, counts, word_positions = tokens.read(positions)
    ends = np.cumsum(counts)
    n_tokens = int(np.searchsorted(ends, n_elements)) + 1
    if n_tokens > ends.size:
        held = int(ends[-1]) if ends.size else 0
        raise MaskFormatError(f"brush RLE is cut: {held} of {n_elements} elements")
    filled, lengths = _fill(
        tokens, is_run[:n_tokens], counts[:n_tokens], word_positions[:n_tokens], n_elements
    )
    return MaskRuns(height, width, filled, lengths)


def _fill(
    tokens: _TokenReader, is_run: BoolMask, counts: Ints, word_positions: Ints, n_elements: int
) -> tuple[BoolMask, Ints]:
    """Runs of the alpha channel: element 4p + 3 is pixel p. Literal tokens become runs of one word.

    Returns:
        Whether each run is mask, and its length in pixels.
    """
    repeats = np.where(is_run, 1, counts)
    if not is_run.all():
        first = np.cumsum(repeats) - repeats
        within = np.arange(int(repeats.sum())) - np.repeat(first, repeats)
        word_positions = np.repeat(word_positions, repeats) + within * _WORD_BITS
        counts = np.where(np.repeat(is_run, repeats), np.repeat(counts, repeats), 1)
    if int(word_positions[-1]) + _WORD_BITS > tokens.n_bits:
        raise MaskFormatError("brush RLE is cut: its last words are missing")
    # A token that ends within a pixel does not cover its alpha, the last of four bytes: floor division
    # gives that pixel to the token that does.
    pixel_ends = np.minimum(np.cumsum(counts), n_elements) // CHANNELS
    filled: BoolMask = tokens.words(word_positions) > ALPHA_THRESHOLD
    return filled, np.diff(pixel_ends, prepend=0)


class _TokenReader:
    """Finds the tokens of a brush RLE stream.

    A token's start is known only after the previous token, and decoding tokens one by one is slow in Python.
    The length of a hypothetical run at each bit of a piece is computed for all bits together; only following
    the chain is sequential.
    """

    def __init__(self, data: npt.NDArray[np.uint8], field_bits: Ints) -> None:
        self.n_bits = data.size * 8
        self._field_bits = np.tile(field_bits, 2)  # by the 3 bits a token starts with
        padded = np.concatenate((data, np.zeros(4, dtype=np.uint8))).astype(np.uint32)
        self._windows = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]

    def words(self, positions: Ints) -> npt.NDArray[np.uint32]:
        """Reads the 8-bit word at each bit position."""
        return self._bits_from(positions) >> np.uint32(32 - _WORD_BITS)

    def read(self, positions: Ints) -> tuple[BoolMask, Ints, Ints]:
        """Reads the token at each bit position: is it a run, its count, where its first word is."""
        bits = self._bits_from(positions)
        kind = bits >> np.uint32(29)
        fields = self._field_bits[kind]
        counts = ((bits << np.uint32(3)) >> (32 - fields).astype(np.uint32)).astype(np.int64) + 1
        return kind > 3, counts, positions + 3 + fields

    def positions(self) -> Ints:
        """Finds the bit position of each token, up to the end of the stream (its padding included)."""
        pieces = []
        position = _HEADER_BITS
        while position < self.n_bits:
            first = position & ~7
            runs = self._run_bits(first, min(first + _PIECE_BITS, self.n_bits)).data
            at, size, found = position - first, len(runs), array("q")
            while at < size:
                found.append(at)
                at += runs[at] or self._literal_bits(first + at)
            pieces.append(np.frombuffer(found, dtype=np.int64) + first)
            position = first + at
        return np.concatenate(pieces)

    def _run_bits(self, first: int, end: int) -> npt.NDArray[np.uint8]:
        """Length of a run at each bit position, 0 where there is none; between whole bytes."""
        lengths = np.where(np.arange(8) > 3, 3 + self._field_bits + _WORD_BITS, 0).astype(np.uint8)
        windows = (self._windows[first >> 3 : end >> 3] >> np.uint32(16)).astype(np.uint16)
        kinds = (windows[:, None] << np.arange(8, dtype=np.uint16)) >> np.uint16(13)
        runs: npt.NDArray[np.uint8] = lengths[kinds].ravel()
        return runs

    def _literal_bits(self, position: int) -> int:
        """Length of the literal token at a bit position."""
        bits = int(self._windows[position >> 3]) << (position & 7) & 0xFFFFFFFF
        field = int(self._field_bits[bits >> 29])
        count = ((bits << 3 & 0xFFFFFFFF) >> (32 - field)) + 1
        return 3 + field + count * _WORD_BITS

    def _bits_from(self, positions: Ints) -> npt.NDArray[np.uint32]:
        """Returns 32 bits from each position, of which the first 25 count."""
        windows: npt.NDArray[np.uint32] = self._windows[positions >> 3]
        return windows << (positions & 7).astype(np.uint32)
