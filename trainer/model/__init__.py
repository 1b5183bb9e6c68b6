"""The partial convolution layers, the UNet, its losses and the perceptual network. Keras ops alone: any backend."""
