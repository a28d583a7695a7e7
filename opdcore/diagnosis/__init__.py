"""Diagnosis: measures a student, its teacher and some prompts before anything is trained.

What a probe finds is numbers; verdicts are drawn from them by `opdcore.verdicts`. Importing this package
loads nothing; `setup` and `dumped` need no torch.
"""
