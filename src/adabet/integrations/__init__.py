"""adabet inside other libraries; each module here imports its library."""
