"""Runs untrusted Python against tests in a process that can reach nothing.

`server` is the program; it forks one process for each attempt, `confinement` takes everything from that
process (`landlock` its files, `seccomp` its system calls), `examination` runs the response and the tests
in it, and `comparisons` sees to it that only trusted code says what is equal. The modules load the
standard library alone, so that a response finds nothing else, and know neither verifiers nor prompts.
"""
