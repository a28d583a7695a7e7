"""Forms: what a page asks, and where each error goes."""
