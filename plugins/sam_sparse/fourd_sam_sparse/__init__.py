"""L4P's tracking head: points followed through a window by a SAM-style decoder, and what is carried between windows."""
