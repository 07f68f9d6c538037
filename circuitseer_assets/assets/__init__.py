"""What is materialised, from what, with which metadata: one file a stage."""

import warnings

# That the interface of observed source assets may move is known: dagster's version is pinned.
warnings.filterwarnings("ignore", message=".*is currently in beta.*")
