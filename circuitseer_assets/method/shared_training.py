"""One training by several processes: every step's batch shared out, in the one process's order.

The last batch of an epoch may hold fewer rows than there are shares. A loader would fill it up with
rows that then count twice; here rows fill it up that carry no loss, so that they count nothing.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers import TrainerCallback

from circuitseer_assets.method.resumable_trainer import ResumableTrainer


class WholeBatches(Sampler[int]):
    """The rows in the order in which one process trains on them, then those that fill up."""

    def __init__(self, num_rows: int, num_fill: int, seed: int) -> None:
        self._rows = SeedableRandomSampler(range(num_rows), data_seed=seed)
        self._fill = range(num_rows, num_rows + num_fill)

    def set_epoch(self, epoch: int) -> None:
        """Makes the next order that of an epoch."""
        self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return itertools.chain(self._rows, self._fill)

    def __len__(self) -> int:
        return len(self._rows) + len(self._fill)


class OrderOfTheEpoch(TrainerCallback):
    """Tells the order which epoch begins.

    The loaders tell it, too, but not where they skip what an interrupted epoch had trained on:
    what skips and what shares out, one around the other, hide the order from them.
    """

    def __init__(self, order: WholeBatches) -> None:
        self._order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the epoch, of which a part may be done already."""
        self._order.set_epoch(int(state.epoch))


class SharedTrainer(ResumableTrainer):
    """A trainer that shares every batch out among the processes as it stands.

    Inherited from because the order of the rows is a method's to say.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        rows: Any = self.train_dataset
        num_fill = -len(rows) % (self.args.train_batch_size * self.args.world_size)
        self._order = WholeBatches(len(rows), num_fill, self.args.data_seed or 0)
        self.add_callback(OrderOfTheEpoch(self._order))
        if num_fill:
            # Only now: the trainer drops rows without a loss from what it is given.
            empty = {"input_ids": rows[0]["input_ids"][:1], "labels": [-100]}
            fill = Dataset.from_list([empty] * num_fill, features=rows.features)
            self.train_dataset = concatenate_datasets([rows, fill])

    def _get_train_sampler(self, train_dataset: Any = None) -> WholeBatches:
        return self._order
