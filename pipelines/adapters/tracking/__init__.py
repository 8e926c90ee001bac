"""MLflow: the record of training runs and the registry of models. The only place that imports it.

Steps talk to MLflow's tables directly (0.7 s to connect) and not through its server (5 to 12 s for a client's first
call); the server serves people. Artifacts lie below `mlflow/` in the object store.
"""

from pipelines.adapters.tracking.registry import MlflowRegistry
from pipelines.adapters.tracking.runs import RunTracker

__all__ = ["MlflowRegistry", "RunTracker"]
