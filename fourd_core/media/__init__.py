"""Video in; arrays, pictures and videos out."""
