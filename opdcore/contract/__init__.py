"""The contract between the job's process, the worker and the web: pydantic models and pure numbers.

It knows no torch, no Django and no file but those it is handed.
"""
