"""Writes: each takes an actor, checks what that actor may do, and leaves an audit entry."""
