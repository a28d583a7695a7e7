"""opdcore, on-policy distillation as a library: `for event in opdcore.run(job)`.

This module is light on purpose: importing it loads neither torch nor transformers. It knows nothing
of Django, Celery or any broker.
"""
