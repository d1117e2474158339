"""What pyproject.toml cannot say: a part of data/ is installed as loradex/data."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Large adapters whose task has others; the demo and the study `small` go without.
LEFT_OUT = {
    "boolean-r16",
    "clinc_oos",
    "colored_objects-r2",
    "hate_or_offensive-r2",
    "hyperbaton-r8",
    "object_counting-r16",
    "overruling-r8",
}


class BuildWithData(build_py):
    """Copies the sample Hub and its task beside the modules of a wheel."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        root, target = Path(__file__).parent / "data", Path(self.build_lib) / "loradex" / "data"
        shutil.rmtree(target, ignore_errors=True)
        for name in ("sample_hub", "tasks"):
            shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns(*LEFT_OUT))


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithData})
