"""Every run in MLflow.

The driver makes the run and closes it (`run`), rank 0 sends metrics from a thread (`writer`), one worker of each
node measures the machine (`system`), `ui` shows it all.  Nothing here is imported before a recipe has been
checked, and mlflow itself only where it is used.
"""
