"""An exported model as MLflow's logged model, its weights left where they are.

MLflow would copy the weights into its artifact store: twice the space, and minutes for a large model, while the run
folder holds them already and outlives the run.  So the logged model is *external*: it is listed in the UI with its
metrics, parameters, model card and configuration, its `location` parameter says where the weights are, and it can be
registered.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

LARGEST_ARTIFACT = 20_000_000
"""Bytes; configuration, tokenizer and model card are smaller, weights of any size stay where they are."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def log_exported_model(
    client: "MlflowClient",
    run_id: str,
    *,
    folder: Path,
    location: str,
    task: str,
    step: int,
    metrics: Mapping[str, float],
) -> str:
    """Makes the logged model and links it to the run.

    Args:
        client: client of the run's store.
        run_id: the run that trained the model.
        folder: local copy of the exported Hugging Face folder.
        location: where users find the folder: its path or URI.
        task: what the model does; MLflow's model type.
        step: the step the model was exported after.
        metrics: what the model reached; shown with the model, and as `final/<name>` with the run.

    Returns:
        The id of the logged model.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id,
        name=run.info.run_name,
        source_run_id=run_id,
        params={"location": location, "format": "huggingface", "step": str(step)},
        tags={MLFLOW_MODEL_IS_EXTERNAL: "true"},
        model_type=task,
    )
    with tempfile.TemporaryDirectory() as small:
        _collect(folder, Path(small), model)
        client.log_model_artifacts(model.model_id, small)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    now = int(time.time() * 1000)
    final = [Metric(f"final/{key}", value, now, step, model_id=model.model_id) for key, value in metrics.items()]
    client.log_batch(run_id, metrics=final)
    return str(model.model_id)


def _collect(folder: Path, target: Path, model: "LoggedModel") -> None:
    """Gathers the small files of the export, and the MLmodel file without which a model cannot be registered."""
    from mlflow.models.model import MLMODEL_FILE_NAME
    from mlflow.models.utils import get_external_mlflow_model_spec

    for path in folder.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS and path.stat().st_size <= LARGEST_ARTIFACT:
            shutil.copy2(path, target / path.name)
    get_external_mlflow_model_spec(model).save(str(target / MLMODEL_FILE_NAME))
