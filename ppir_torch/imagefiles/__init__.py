"""Image files as SimpleITK images of one channel: read right, or refused in one line that says what lies there."""
