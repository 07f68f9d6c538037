"""Where MLflow's SQLite store says its files lie: absolute addresses, mended when a home has moved.

MLflow writes down the folder of every experiment, run and model in full. In a copied or moved home
they would lead into the old one.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from circuitseer_assets.errors import TrackingError

_LOCATION = "select artifact_location from experiments where name = ?"
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
# The subsets trained on: JSON with the address of a file among the home's artifacts.
_DATASETS = "update datasets set dataset_source = replace(dataset_source, ?, ?)"


def rebase_addresses(database: Path, experiment: str, home: Path, *, root: str) -> bool:
    """Returns whether the addresses in an MLflow database led elsewhere, after mending them.

    Args:
        database: the SQLite file.
        experiment: the experiment whose place says where the home was.
        home: the home's folder as it will be found from now on.
        root: the name of the folder in it that holds MLflow's files.

    Raises:
        TrackingError: the file is no MLflow database, or cannot be written.
    """
    now = home.resolve().as_uri()
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            found = connection.execute(_LOCATION, (experiment,)).fetchone()
            # Elsewhere by choice, such as in a bucket: left alone.
            if found is None or not str(found[0]).startswith("file://"):
                return False
            before, _, name = str(found[0]).rstrip("/").rpartition("/")
            if name != root or before == now:
                return False
            with connection:
                for table, column in _ADDRESSES:
                    connection.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) "
                        f"where {column} = ? or substr({column}, 1, ?) = ?",
                        (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )
                connection.execute(_DATASETS, (f'"{before}/', f'"{now}/'))
            return True
    except sqlite3.Error as error:
        raise TrackingError(
            f"the MLflow store {database} must be a database that can be written, as its home has "
            f"moved, and is not ({error}); make it writable, or name it by its former path"
        ) from error
