"""EfficientNet-Lite0 as a backbone whose pretrained weights come with a package."""
