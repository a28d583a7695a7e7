"""Lets vLLM's second model runner work on a CPU: its kernels are interpreted by Triton.

A server that finds this folder on PYTHONPATH imports it as it starts. Only that runner tells the logprobs of
tokens that a request names, and only a GPU has it otherwise.
"""

import os
from importlib import import_module
from importlib.util import find_spec

if find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"

    class Interpreted:
        """What vLLM asks of a backend of Triton's before it believes in it."""

        compiler = None

        class driver:  # noqa: N801 - its name there
            @staticmethod
            def is_active() -> bool:
                return True

    import_module("triton.backends").backends["cpu"] = Interpreted
