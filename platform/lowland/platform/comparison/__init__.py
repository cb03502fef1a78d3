"""Recipes or optimizers compared at an equal tuning budget, over seeds.

A comparison is searches and searches over seeds: `stages.py` says which, `compare.py` leads them, `results.py` reads
what they came to from their storage alone, and `statistics.py` says what that means.
"""
