"""Image and text towers behind one protocol."""

from mm.encoders.base import Encoder, EncoderSpec, ImageFeatures, TextFeatures

__all__ = ["Encoder", "EncoderSpec", "ImageFeatures", "TextFeatures"]
