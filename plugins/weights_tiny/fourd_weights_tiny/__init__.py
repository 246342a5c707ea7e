"""Small weights that the project trained itself; recipes name them `package:fourd_weights_tiny/FILE`."""
