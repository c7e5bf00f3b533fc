"""From labelled clips to a Keras CNN-RNN in a model directory, and its evaluation."""
