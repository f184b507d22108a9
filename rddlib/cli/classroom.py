"""`rdd app`: the notebooks' sliders as pages for a class."""

from typing import Annotated

import typer

from rddlib.cli.options import OutOption, ProfileOption, SeedOption


def app(
    profile: ProfileOption = "digits",
    out: OutOption = None,
    seed: SeedOption = 0,
    port: Annotated[int, typer.Option(help="Where the pages are served.")] = 8866,
    ip: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets others in.")] = "127.0.0.1",
) -> None:
    """Show the notebooks' sliders to a class.

    Notebooks 02 to 06 as pages: prose, pictures and sliders, no code and nothing to edit. Nothing is trained: the models
    come with rddlib (digits, photos) or from a study's folder. A page takes a process of about 0.8 GB for each visitor,
    and one more waits for the next.

    \b
    Examples:
      rdd app
      rdd app --profile photos
      rdd app --out runs/digits --port 9000
    """
    from rddlib.report.app import check_server, prepare, serve
    from rddlib.study.folder import default_out

    check_server(ip, port)
    study = prepare(profile, out or default_out(profile), seed)
    print(f"Open http://{ip}:{port} in a browser, in half a minute; Ctrl-C ends it.", flush=True)
    serve(study, ip, port)
