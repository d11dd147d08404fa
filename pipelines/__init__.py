"""Declarative runs: a YAML file becomes objects, which stages train, attack and report.

`tfrobust run NAME` and `python -m pipelines.run NAME` are the ways in.
"""
