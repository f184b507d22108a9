"""`rdd app`: the prose and sliders of notebooks 02 to 06 as pages for a class, served by voila with their code hidden."""

import importlib.util
import os
import socket
import sys
from pathlib import Path

from rddlib.report.notebooks import notebook_files
from rddlib.study.folder import STUDY_FILE, continue_study
from rddlib.study.stage import Stage
from rddlib.study.study import Study
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError

SHOWN, QUIET = "app", "app-quiet"  # tags of the cells that are taken; of the second nothing is shown
OWN = "'self' 'unsafe-inline' 'unsafe-eval' blob: data:"  # what a page may load
IDLE_SECONDS = 600  # until the kernel of a page that nobody looks at any more is ended


def write_pages(study: Study) -> list[Path]:
    """Write the app's notebooks into study.out/app: of each notebook with tagged cells its title, its question and these."""
    import nbformat

    pages, given = [], (study.profile.name, study.seed, str(study.out.resolve()))
    for source in notebook_files():
        notebook = nbformat.read(source, as_version=4)
        title, *cells = notebook.cells
        title.source = "\n\n".join(title.source.split("\n\n")[:2])  # what follows tells of the whole notebook
        tagged = [cell for cell in cells if {SHOWN, QUIET} & set(cell.metadata.get("tags", []))]
        for cell in tagged:
            if QUIET in cell.metadata.tags:
                cell.source = f"%%capture\n{cell.source}"
        if tagged:
            parameters = nbformat.v4.new_code_cell(f"profile, seed, out = {given!r}")
            notebook.cells = [title, parameters, *tagged]
            pages.append(study.out / "app" / f"{title.source.splitlines()[0].removeprefix('# ')}.ipynb")
            write_atomically(pages[-1], nbformat.writes(notebook))
    for old in {*pages[0].parent.glob("*.ipynb")} - {*pages}:  # of a version with other titles
        old.unlink()
    return pages


def prepare(profile: str, out: Path, seed: int, overrides: dict[str, str]) -> Study:
    """The study in `out`, as notebooks open it but for overrides, with the models that the app shows.

    Raises UserError, and writes nothing, where one of them neither lies there nor comes with the package.
    """

    def models(study: Study) -> tuple[Stage, ...]:
        return study.stages.base, study.stages.teacher(), study.stages.extractor

    def check(study: Study) -> None:
        for stage in models(study):
            if not stage.at_hand:
                raise UserError(
                    f"the app trains nothing, and {out} has no {stage.label}: rdd study --profile {profile} --out {out} "
                    "makes it"
                )

    fresh = {} if (out / STUDY_FILE).exists() else {"run.shipped": "all"}
    study = continue_study(profile, fresh | overrides, out, seed, check=check)
    for stage in models(study):
        stage.get()
    return study


def check_server(ip: str, port: int) -> None:
    """Raise UserError where voila is missing or nothing can listen at that address."""
    if importlib.util.find_spec("voila") is None:
        raise UserError("the app needs an extra: pip install 'rddlib[app]'")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", error)
            raise UserError(f"nothing can listen at {ip}, port {port} ({why}): choose another --port") from error


def serve(study: Study, ip: str, port: int) -> None:
    """Become voila, which serves the study's pages until it is stopped. A page opens with a kernel that waited for it."""
    folder = write_pages(study)[0].parent
    options = {
        "Voila.ip": ip,
        "Voila.port": port,
        "Voila.open_browser": False,
        "Voila.log_level": "ERROR",
        "VoilaConfiguration.classic_tree": True,
        "VoilaConfiguration.strip_sources": True,
        "VoilaConfiguration.preheat_kernel": True,
        "VoilaConfiguration.default_pool_size": 1,
        "KernelManager.transport_encryption": "auto",
        "MappingKernelManager.cull_idle_timeout": IDLE_SECONDS,
        "MappingKernelManager.cull_interval": 60,
    }
    own = {"headers": {"Content-Security-Policy": f"default-src {OWN}"}}  # else its templates ask for fonts elsewhere
    words = [f"--{name}={value}" for name, value in (options | {"Voila.tornado_settings": own}).items()]
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this Python's own kernel, not one in the user's folders
    os.execv(sys.executable, [sys.executable, "-m", "voila", *words, str(folder)])
