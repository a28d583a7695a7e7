"""Pages: a view parses the request, calls one service and responds."""
