"""Operations that deserve a file of their own: each has a plain-torch definition, which faster ones reproduce."""
