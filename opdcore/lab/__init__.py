"""The built-in laboratory: small verifiable tasks and tiny models on which the method is studied.

Importing this package loads no torch; `opdcore.lab.build` and `opdcore.lab.training` do.
"""
