"""An actor of ours around the vLLM engine against Ray Data's own vLLM processor."""
