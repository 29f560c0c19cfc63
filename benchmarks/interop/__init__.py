"""Other clients than our own runtime, on our builds."""
