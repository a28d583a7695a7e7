"""Models behind a vLLM server: asked over HTTP, started and stopped as a process. Nothing imports vLLM."""
