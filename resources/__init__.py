"""Everything that talks to the outside: models, files, the warehouse, tracking, evaluation."""
