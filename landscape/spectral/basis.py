"""Vectors kept as rows, if asked in another precision or on another device than the work is done."""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 16 * 2**20  # what a part of the rows may occupy while it is converted or mixed


class Basis:
    """Rows of length p. What comes out is in the working dtype and on the working device.

    Dot products and sums are made in the working dtype, where the rows lie: a basis on the CPU is never carried to
    the GPU as a whole. If the rows are kept in fewer bits than the work is done, the first `fine` are kept in full.

    Args:
        length: Number of rows.
        p: Their length.
        dtype: Working dtype.
        device: Working device.
        kept: Dtype and device of the rows.
        fine: Rows kept in the working dtype and on the working device, where `kept` loses digits.
    """

    def __init__(
        self,
        length: int,
        p: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        kept: tuple[torch.dtype, torch.device],
        fine: int = 0,
    ) -> None:
        self.dtype, self.device, self.p = dtype, device, p
        self.lossy = loses_digits(kept[0], dtype)
        self.fine = min(fine, length) if self.lossy else 0
        self.top = torch.empty(self.fine, p, dtype=dtype, device=device)
        self.length = length
        self.rest = torch.empty(length - self.fine, p, dtype=kept[0], device=kept[1])

    def __len__(self) -> int:
        return self.length

    def get(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, of shape (stop - start, p): a view where that is possible, not to be changed."""
        if start >= self.fine:
            return self.rest[start - self.fine : stop - self.fine].to(self.device, self.dtype)
        if stop <= self.fine:
            return self.top[start:stop]
        return torch.cat([self.top[start:], self.get(self.fine, stop)])

    def put(self, at: int, rows: Tensor) -> None:
        """Write rows, of shape (b, p), from `at` on."""
        split = max(0, min(len(rows), self.fine - at))
        self.top[at : at + split] = rows[:split]
        if split < len(rows):
            first = at + split - self.fine
            self.rest[first : first + len(rows) - split] = rows[split:].to(self.rest.device)

    def project(self, w: Tensor, count: int) -> Tensor:
        """Dot products of the first `count` rows with w of shape (p,) or (p, b): of shape (count,) or (count, b)."""
        parts = [self.top[:count] @ w] if self.fine else []
        if count > self.fine:
            there = w.to(self.rest.device)
            parts += [piece @ there for piece in self._pieces(count)]
        return torch.cat([part.to(self.device) for part in parts]) if parts else w.new_zeros(0, *w.shape[1:])

    def subtract(self, w: Tensor, coefficients: Tensor) -> Tensor:
        """Subtract Σ_i c_i row_i from w, over as many rows as there are coefficients; shapes as in `project`."""
        add = torch.addmv if w.ndim == 1 else torch.addmm
        count = len(coefficients)
        if self.fine:
            w = add(w, self.top[:count].T, coefficients[: self.fine], alpha=-1)
        if count > self.fine:
            home, at, w = w.device, self.fine, w.to(self.rest.device)
            coefficients = coefficients.to(w.device)
            for piece in self._pieces(count):
                w = add(w, piece.T, coefficients[at : at + len(piece)], alpha=-1)
                at += len(piece)
            w = w.to(home)
        return w

    def combine(self, start: int, mix: Tensor) -> Tensor:
        """Combinations of rows from `start` on: mix has shape (rows, k), the result (k, p)."""
        result = torch.empty(mix.shape[1], self.p, dtype=self.dtype, device=self.device)
        for a, b in self._columns(len(mix)):
            result[:, a:b] = self._mixed(start, mix, a, b)
        return result

    def mix(self, start: int, mix: Tensor) -> bool:
        """Replace the rows from `start` on by their combinations, in place, with memory for a few columns at a time.

        An interrupt would leave half of the columns mixed; it is held back until all are.

        Args:
            start: First row.
            mix: Coefficients, of shape (rows, k) with k <= rows.

        Returns:
            Whether there was an interrupt, which the caller is to raise once its own books are in order.
        """
        columns, done, interrupted = self._columns(len(mix)), 0, False
        split = max(0, min(mix.shape[1], self.fine - start))
        top = slice(start, start + split)
        rest = slice(max(0, start + split - self.fine), max(0, start + mix.shape[1] - self.fine))
        while done < len(columns):
            try:
                while done < len(columns):
                    a, b = columns[done]
                    new = self._mixed(start, mix, a, b)
                    fine, coarse = new[:split], new[split:].to(self.rest.device)
                    # Python handles signals at calls and jumps: none can come between these three statements
                    self.top[top, a:b] = fine
                    self.rest[rest, a:b] = coarse
                    done += 1
            except KeyboardInterrupt:
                interrupted = True
        return interrupted

    def _pieces(self, count: int) -> Iterator[Tensor]:
        """The rows of `rest` among the first `count`, in the working dtype: converted a few at a time if need be."""
        rows = self.rest[: count - self.fine]
        each = max(1, CHUNK_BYTES // (self.p * self.dtype.itemsize)) if rows.dtype != self.dtype else len(rows)
        return (part.to(self.dtype) for part in rows.split(each))

    def _columns(self, rows: int) -> list[tuple[int, int]]:
        step = max(1, CHUNK_BYTES // (max(1, rows) * self.dtype.itemsize))
        return [(a, min(a + step, self.p)) for a in range(0, self.p, step)]

    def _mixed(self, start: int, mix: Tensor, a: int, b: int) -> Tensor:
        """Columns a to b of the combinations, on the working device."""
        split = max(0, min(len(mix), self.fine - start))
        first = max(0, start + split - self.fine)
        rest = self.rest[first : first + len(mix) - split, a:b].to(self.dtype)
        new = (mix[split:].T.to(rest.device) @ rest).to(self.device)
        return new + mix[:split].T @ self.top[start : start + split, a:b] if split else new


def loses_digits(kept: torch.dtype, work: torch.dtype) -> bool:
    """Whether numbers of dtype `work` are rounded when they are kept in dtype `kept`."""
    return torch.finfo(kept).eps > torch.finfo(work).eps
