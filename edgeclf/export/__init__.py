"""From a model directory to a bundle of ONNX graphs that are proven to agree with Keras."""
