"""One HTML page about trained runs: `jobs/gallery.py --runs STAGE_1 STAGE_2 STAGE_3 --out PAGE.html`."""

from collections.abc import Sequence

from jobs.common import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page and, with --picture, an image of its best examples."""
    parser = cli.parser("Make an HTML page of one or more runs: scores, conversations, failures and learning curves.")
    parser.add_argument("--runs", required=True, nargs="+", metavar="RUN", help="runs, in the order of their stages")
    parser.add_argument("--out", required=True, metavar="PAGE.html", help="the page to write; it is self-contained")
    parser.add_argument("--picture", metavar="FILE.png", help="also write an image of the best examples, for a README")
    arguments = parser.parse_args(argv)

    from pipelines.inspect.gallery_page import write_gallery
    from pipelines.inspect.gallery_picture import write_picture
    from pipelines.storage.files import to_path

    runs = [cli.existing_folder(run) for run in arguments.runs]
    write_gallery(runs, to_path(arguments.out))
    print(f"gallery: {arguments.out}")
    if arguments.picture:
        write_picture(runs, to_path(arguments.picture))
        print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    cli.run(main)
