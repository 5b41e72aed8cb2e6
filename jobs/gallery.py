"""One HTML page about trained runs: `jobs/gallery.py --runs STAGE_1 STAGE_2 STAGE_3 --out PAGE.html`."""

from dataclasses import dataclass
from typing import Annotated

from jobs.common import cli
from jobs.common.cli import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryOptions:
    """Make an HTML page of one or more runs: scores, conversations, failures and learning curves."""

    runs: Annotated[tuple[str, ...], Option("runs, in the order of their stages", "RUN")]
    out: Annotated[str, Option("the page to write; it is self-contained", "PAGE.html")]
    picture: Annotated[str | None, Option("also write an image of the best examples, for a README", "FILE.png")] = None


def run(options: GalleryOptions) -> None:
    """Writes the page and, with --picture, an image of its best examples."""
    from pipelines.inspect.gallery_page import write_gallery
    from pipelines.inspect.gallery_picture import write_picture
    from pipelines.storage.files import to_path

    runs = [cli.existing_folder(run) for run in options.runs]
    write_gallery(runs, to_path(options.out))
    print(f"gallery: {options.out}")
    if options.picture:
        write_picture(runs, to_path(options.picture))
        print(f"picture: {options.picture}")


main = cli.command(GalleryOptions, run)

if __name__ == "__main__":
    cli.run(main)
