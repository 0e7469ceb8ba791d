"""What every error message has in common."""


def assert_explained(text, words):
    """Hold a command's stderr to one to three lines that hold every word, and no traceback."""
    aside = ("msn-deploy: WARNING: ", "train: ", "test: ", "measuring takes ")  # what the images are like, and the time
    message = [line for line in text.splitlines() if not line.startswith(aside)]
    assert 1 <= len(message) <= 3, text
    assert message[0].startswith("msn-deploy: ")
    assert "Traceback" not in text
    missing = [word for word in words.split() if word not in text]
    assert not missing, f"{missing} not in: {text}"
