"""What can go wrong, said in one sentence: the parameter, its value, the rule and the remedy."""


class CircuitSeerError(Exception):
    """Anything CircuitSeer refuses or cannot do; its message is written for the user.

    `exit_status` is what a command ends with that it ends.
    """

    exit_status = 2


class SettingsError(CircuitSeerError):
    """A setting is unknown, of the wrong type or impossible."""


class BudgetError(SettingsError):
    """A budget is below one sample, or above what can be drawn."""


class StaleSettingsError(CircuitSeerError):
    """A settings slice was changed after it was last observed."""


class CorpusError(CircuitSeerError):
    """A corpus cannot be read, or holds no usable row."""


class ModelError(CircuitSeerError):
    """A model cannot be loaded, or its architecture is not supported."""


class NotApplicableError(ModelError):
    """A scorer needs something that this base model or corpus does not have."""


class WarehouseError(CircuitSeerError):
    """The warehouse cannot be opened, or what it holds breaks a rule."""


class ArtifactError(CircuitSeerError):
    """An artifact is missing, or its files are not what they were when it was made."""


class ClusterError(CircuitSeerError):
    """A Ray cluster cannot be reached, has no room, or lost what worked on it."""


class EvaluationError(CircuitSeerError):
    """An evaluation task cannot be run as it was asked for."""


class TrackingError(CircuitSeerError):
    """The MLflow store cannot be reached, or refuses what it is given."""


class HousekeepingError(CircuitSeerError):
    """A home cannot be pruned or backed up as it stands."""


class AlertError(CircuitSeerError):
    """A message to people outside could not be delivered."""
