"""python -m analysis.published: writes contradictions.md beside the CSV files and prints how many there are."""

from analysis.published import FOLDER, contradictions, markdown


def main() -> None:
    path = FOLDER / "contradictions.md"
    path.write_text(markdown(), encoding="utf-8")
    print(f"{path.name}: {len(contradictions())} contradictions")


if __name__ == "__main__":
    main()
