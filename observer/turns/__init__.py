"""One exchange on its way to the model and back: accepted, redacted, rendered, and its answer grounded."""
