"""Training in a plain Python process: tasks, data, engines, checkpoints and the loop.

Nothing here knows Ray or MLflow; `lowland.platform` runs this on a cluster.
"""
