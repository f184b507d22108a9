"""RDD in one picture: `python docs/overview.py` draws data/overview.png."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rddlib.report.figures import to_png


def overview_figure() -> Figure:
    """RDD in one picture: what student and teacher draw from one z_t, and the three things that are compared."""
    figure, ax = plt.subplots(figsize=(10, 4.3))
    ax.set(xlim=(0, 100), ylim=(0, 43))
    ax.set_axis_off()
    ax.set_title("Relational Diffusion Distillation: one student step learns from two teacher steps", fontsize=11)
    ink = dict(color="0.25", linewidth=1.1)

    def box(x: float, y: float, width: float, text: str, shade: str = "1.0", height: float = 9) -> None:
        ax.add_patch(Rectangle((x, y), width, height, facecolor=shade, edgecolor="0.25", linewidth=1.1))
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, linespacing=1.35)

    def arrow(start: tuple[float, float], end: tuple[float, float], dash: str = "-") -> None:
        ax.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", linestyle=dash, shrinkA=0, shrinkB=0, **ink))

    box(0, 17, 9, "$z_t$\nnoisy\nimage")
    box(50, 13, 12, "extractor\n(a frozen\nclassifier)", "0.9", height=17)
    drawn = (28, "teacher\ntwo DDIM steps", "0.9", "$x^T$", 26), (6, "student\none step", "0.78", "$x^S$", 17)
    for y, who, shade, image, seen in drawn:
        box(15, y, 15, who, shade)
        box(36, y, 8, image)
        arrow((9, 21.5), (15, y + 4.5))
        arrow((30, y + 4.5), (36, y + 4.5))
        arrow((44, y + 4.5), (50, seen))
    losses = (
        (31.5, "CFD", "pooled features, as distributions\nover channels (Eq. 4)", "-"),
        (17.5, "+ IS_P2P", "each pixel's relation to all pixels\nof all images in the batch (Eq. 7)", "-"),
        (3.5, "+ M_P2P", "... and to a queue of the teacher's\npixels from batches gone by (Eq. 8, 9)", "--"),
    )
    for y, name, words, dash in losses:
        box(70, y, 30, f"\n{words}")
        ax.text(85, y + 7.2, name, ha="center", va="center", fontsize=9, fontweight="bold")
        arrow((62, 21.5), (70, y + 4.5), dash)
    return figure


if __name__ == "__main__":
    (Path(__file__).resolve().parents[1] / "data/overview.png").write_bytes(to_png(overview_figure()))
