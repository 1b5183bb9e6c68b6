"""The network: partial convolution layers, the UNet, its losses, the perceptual network, published weights of others.

keras.ops alone, so any Keras backend works; the modules are imported by name, because each loads Keras.
"""
