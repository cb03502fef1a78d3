"""Searches over recipes: what to try, how far to train it, and the record of both.

`trials.py` and `policies.py` are plain data and pure decisions; `study.py` keeps the state in an Optuna storage; the
same three run under virtual time in `simulate.py` and on a cluster.
"""
