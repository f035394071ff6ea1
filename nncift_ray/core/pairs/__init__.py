"""All pairs: influence from projected activations, exact and streamed, on CPU or a device."""
