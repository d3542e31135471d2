"""When it is imported, the libraries that a bare interpreter lacks are no longer found in this process."""

import sys

HIDDEN = {
    "PIL", "jaxtyping", "joblib", "matplotlib", "psutil", "pyarrow", "pydantic", "pydantic_core", "pytest", "rich",
    "safetensors", "sklearn", "tyro", "yaml",
}  # fmt: skip


class Hiding:
    """A finder as another one, for all but some."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)


assert not HIDDEN & set(sys.modules)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
