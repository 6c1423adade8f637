"""What is compared: optimizers, plain or forecast."""
