"""A ranking's journal on disk: what has been measured survives the process that measured it."""

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class FileJournal(MutableMapping[str, NDArray[np.float64]]):
    """Arrays of numbers by name, appended to one JSON Lines file as they are set.

    A name that is set again is another line, and the last one counts. A process that is killed
    while it writes leaves half a line at the end: the journal is cut off before the first line that
    cannot be read when it is opened again. One process at a time may have it open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays: dict[str, NDArray[np.float64]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        whole = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if entry is None:
                    break
                self._arrays[entry["name"]] = np.array(entry["values"], dtype=np.float64)
                whole += len(line)
        with path.open("rb+") as file:
            file.truncate(whole)

    def __setitem__(self, name: str, values: NDArray[np.float64]) -> None:
        # float64 survives JSON unchanged: what was measured is not rounded again.
        line = json.dumps({"name": name, "values": values.tolist()})
        with self._path.open("a") as file:
            file.write(line + "\n")
        self._arrays[name] = values

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self._arrays[name]

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"a journal only grows, {name!r} cannot be taken out of it")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
