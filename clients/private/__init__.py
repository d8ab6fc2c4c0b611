"""Training with differential privacy: what a client's gradient gives away about any one image is bounded."""
