"""The JSON API at /api/: what scripts may do, through the services that the pages use."""
